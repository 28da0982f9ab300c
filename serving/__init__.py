"""Serving: many tenants' adapters on one base model, each behind its own keys.

Read in this order: :mod:`.sequences` (what an engine is asked and answers), :mod:`.engine`
(continuous batching) with :mod:`.stacked`, :mod:`.bank` and :mod:`.cache` under it,
:mod:`.writing` (how texts grow) with :mod:`.sampling`, :mod:`.beams` and :mod:`.guides`, :mod:`.registry` (which verified artifact a tenant is served), :mod:`.tenants` (keys
and usage), :mod:`.api` (the HTTP gateway) and :mod:`.service` (both as a Ray Serve app).
"""

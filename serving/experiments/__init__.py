"""Experiments with copy: who is shown which variant, and what can be said of the difference.

Statistics first, without files, clocks or requests: :mod:`.intervals`, :mod:`.sequential`,
:mod:`.allocation`, :mod:`.offpolicy`. Then :mod:`.outcomes` (from events to one row per shopper),
:mod:`.analysis` (what is reported) and :mod:`.trials` (experiments of a service's tenants).

The unit is the shopper everywhere: a shopper sees one variant, and several impressions of one
shopper are one observation.

Axes: N shoppers in order, K variants.
"""

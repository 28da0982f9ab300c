"""The operator's side: the round loop, the registry of trained models, and its commands.

Start with ``registry.py`` (what is committed, published and rolled back), then
``repository.py`` (one transaction, four tables' queries) and ``audit.py`` (the hash chain).
"""

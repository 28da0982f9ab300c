"""User-level differential privacy for a merchant's shoppers: mathematics and the ledger.

Start reading at ``docs/privacy.md``, then in the order of one private step:
``sampling`` (which shoppers), ``optimizer`` (clip each shopper, add ``noise``), ``events``
(what happened), ``accounting`` (events to epsilon), ``ledger`` (what was ever spent),
``statement`` (what may be said about it).
"""

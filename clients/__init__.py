"""The merchant's side: its data, its privacy policy and ledger, and local training.

Start reading at :mod:`handbill.clients.reading` (what becomes of each record of a merchant's tables) and
:mod:`handbill.clients.shop` (the rows to train on); :mod:`handbill.clients.tables` reads files,
:mod:`handbill.clients.database` databases, :mod:`handbill.clients.markets` finds the shops.
"""

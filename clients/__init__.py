"""The merchant's side: its data, its privacy policy and ledger, and local training.

Start reading at :mod:`handbill.clients.shop` (a merchant's folder becomes rows to train on);
:mod:`handbill.clients.tables` reads the files, :mod:`handbill.clients.markets` finds the shops.
"""

"""Runnable experiments and the sample market they run on.

Start reading at :mod:`handbill.simulations.market`, which invents the shops.
"""

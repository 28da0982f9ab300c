"""Batches: jobs of many requests for copy, written when there is room beside live requests.

Read in this order: :mod:`.tables`, :mod:`.store` (what a tenant can do), :mod:`.runner` (who writes
them, and when), :mod:`.api`, :mod:`.commands`.
"""

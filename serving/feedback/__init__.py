"""Feedback on served copy: which copy was served, what shoppers did with it, and its end.

Read :mod:`.bodies` (what is sent), :mod:`.sealing` (how it is locked), :mod:`.store` (what is
kept, given back and deleted), :mod:`.tables` and :mod:`.repository` under it, :mod:`.api` above.
"""

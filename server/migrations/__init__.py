"""Schema changes of the operator's database, oldest first in ``versions/``."""

"""A merchant's trainer that does nothing: it answers with as many bytes as it is asked for."""

import os
import sys
from pathlib import Path

from handbill.clients import trainer
from handbill.clients.daemon import serve
from handbill.clients.merchant import Merchant


class Echo:
    """In the place of a :class:`~handbill.clients.trainer.Trainer`."""

    def __init__(self, home: Path) -> None:
        self.merchant = Merchant.load(home)

    def handle(self, message: bytes) -> bytes:
        """Answer: the first eight bytes say how long."""
        return os.urandom(int.from_bytes(message[:8], "big"))


trainer.Trainer = Echo  # type: ignore[assignment, misc]
serve(Path(sys.argv[1]))

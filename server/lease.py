"""One coordinator at a time: a lease in the database, without anybody's clock.

The holder counts up in its row. Whoever else wants the lease watches that number for
:data:`EXPIRES_S` of its own monotonic clock: if it stands still the holder is gone, and the lease
is taken; at once if the row names a process of this machine that is not there any more. A holder
that was only slow finds out at its next transaction: no round is opened or closed any more under
a holder that the row does not name (:class:`RoundRepository`), so the worst that a wrong guess
costs is the attempt that was open.
"""

import logging
import os
import secrets
import socket
import threading
import time
from typing import Final, Self

from handbill.errors import LeaseError
from handbill.federation.supervision import lives
from handbill.server.orm import DatabaseError
from handbill.server.records import Held
from handbill.server.repository import Database

log = logging.getLogger(__name__)

BEAT_S: Final = 2.0
EXPIRES_S: Final = 12.0


class Watch:
    """Tells from the lease's row alone whether its holder is gone."""

    def __init__(self, expires_s: float = EXPIRES_S) -> None:
        """Nothing was seen yet.

        Args:
            expires_s: How long a holder's number must stand still.
        """
        self._expires_s = expires_s
        self.seen: Held | None = None
        self._until = 0.0

    def gone(self, held: Held | None) -> bool:
        """Whether nobody holds the lease any more, going by what its row says now."""
        if held is None or _died_here(held.holder):
            return True
        if held != self.seen:
            self.seen, self._until = held, time.monotonic() + self._expires_s
        return time.monotonic() >= self._until


def _died_here(holder: str) -> bool:
    host, pid, *_ = holder.split("/")
    return host == socket.gethostname() and not lives(int(pid))


class Lease:
    """The right to take rounds, while the ``with`` block runs."""

    def __init__(
        self, database: Database, *, beat_s: float = BEAT_S, expires_s: float = EXPIRES_S
    ) -> None:
        """Prepare; nothing is taken yet.

        Args:
            database: Whose rounds.
            beat_s: How often the holder counts up.
            expires_s: How long another's number must stand still.
        """
        self._database, self._beat_s, self._expires_s = database, beat_s, expires_s
        self.holder = f"{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(4)}"
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)

    def __enter__(self) -> Self:
        """Take the lease, waiting for one that nobody holds any more to expire.

        Raises:
            LeaseError: Another coordinator is alive.
        """
        self._take()
        self._database.holder = self.holder
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._database.holder = ""
        try:
            with self._database.begin() as uow:
                uow.leases.release(self.holder)
                uow.commit()
        except DatabaseError:  # what ended the block counts; the lease expires by itself
            log.exception("lease_not_released")

    def _take(self) -> None:
        watch = Watch(self._expires_s)
        while True:
            before = watch.seen
            with self._database.begin() as uow:
                held = uow.leases.get()
                if watch.gone(held):
                    uow.leases.put(self.holder)
                    uow.commit()
                    return
            if held is not None and before not in {None, held}:
                raise LeaseError(
                    f"another coordinator ({held.holder}) is taking rounds with this database; "
                    f"wait until it is done, or stop it"
                )
            time.sleep(self._beat_s / 4)

    def _beat(self) -> None:
        while not self._done.wait(self._beat_s):
            try:
                with self._database.begin() as uow:
                    held = uow.leases.beat(self.holder)
                    uow.commit()
            except DatabaseError:
                log.exception("lease_beat_failed")  # the database may come back in time
                continue
            if not held:
                log.error("lease_lost", extra={"holder": self.holder})
                return

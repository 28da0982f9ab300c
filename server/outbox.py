"""The signed files that others read, written from the rows that are the truth.

Each function is called inside a unit of work, under its one-writer lock: the newest row wins, and
an older head or channel is never written over a newer one. A file that a crash left behind its
row is written again at the next start.
"""

import secrets
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from handbill.errors import ArtifactError
from handbill.generator.artifacts import public_pem
from handbill.generator.channels import Channel, read_channel, write_channel
from handbill.privacy.faults import faultpoint
from handbill.server.audit import sign_head
from handbill.server.records import Publication
from handbill.server.repository import UnitOfWork

HEAD_FILE: Final = "audit-head.json"


def channel_of(step: Publication) -> Channel:
    """Return what a channel's file says after its newest step."""
    return Channel(
        tenant=step.tenant,
        digest=step.served,
        serial=step.serial,
        published=step.published_at,
        candidate=step.candidate,
        percent=step.percent,
    )


class Outbox:
    """Writes below ``root``, signs with ``key``."""

    def __init__(self, root: Path, key: Ed25519PrivateKey) -> None:
        self._root = root
        self._key = key

    def claim(self) -> None:
        """Write the publisher's public key, once.

        Raises:
            ArtifactError: The registry belongs to another key.
        """
        self._root.mkdir(parents=True, exist_ok=True)
        path = self._root / "publisher.pub"
        mine = public_pem(self._key.public_key())
        if not path.is_file():  # whole or not at all: others may be opening the registry too
            draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
            draft.write_bytes(mine)
            draft.rename(path)
        if path.read_bytes() != mine:
            raise ArtifactError(
                f"{path}: this registry belongs to another publishing key; use the key it was "
                "made with"
            )

    def write_head(self, uow: UnitOfWork) -> None:
        """Sign the audit chain's last committed entry."""
        head = uow.audit.head()
        if head is not None:
            temporary = self._root / f"{HEAD_FILE}.new"
            temporary.write_bytes(sign_head(head, self._key))
            faultpoint("outbox.head.before_rename")
            temporary.replace(self._root / HEAD_FILE)

    def write_channel(self, uow: UnitOfWork, tenant: str) -> tuple[Channel, bool]:
        """Make a channel's file say what its newest row says.

        Returns:
            The channel, and whether the file had to be written.
        """
        wanted = channel_of(uow.channels.history(tenant)[-1])
        try:
            found = read_channel(self._root, tenant, self._key.public_key())
        except ArtifactError:
            found = None  # damaged or forged: write it again
        if found != wanted:
            faultpoint("outbox.channel.before")
            write_channel(self._root, wanted, self._key)
        return wanted, found != wanted

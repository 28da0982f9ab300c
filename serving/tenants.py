"""Tenants, their keys and their usage."""

import hmac
import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from handbill.errors import InputError
from handbill.generator.artifacts import check_tenant
from handbill.serving.config import ServingConfig
from handbill.serving.errors import InvalidKeyError
from handbill.serving.house import House
from handbill.serving.keys import SCOPES, ApiKey, check_scopes, load_or_create_pepper
from handbill.serving.migrations import migrate
from handbill.serving.orm import utc_now
from handbill.serving.repository import Repository, Usage
from handbill.serving.reviews import Reviews

log = logging.getLogger(__name__)

# Names that mean the same for every tenant, and so can be nobody's id.
RESERVED_IDS: Final = frozenset({"default", "handbill", "base", "global"})
_NOBODY: Final = ApiKey("00000000", "0" * 43)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who a request comes from, as its key proves.

    Attributes:
        key: Id of the key.
        scopes: What the key may be used for.
    """

    tenant: str
    key: str
    scopes: frozenset[str] = frozenset(SCOPES)


class Tenants:
    """The tenants of one service.

    Args:
        repository: An up-to-date serving database.
        pepper: The secret of :mod:`handbill.serving.keys`.

    Attributes:
        house: What each tenant's copy may and may not say.
        reviews: What waits for a person of each tenant's.
    """

    def __init__(self, repository: Repository, pepper: bytes) -> None:
        self._repository = repository
        self._pepper = pepper
        self.house = House(repository)
        self.reviews = Reviews(repository, self.house)
        # One writer: a request never waits for the disk, and SQLite never sees two.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="usage")

    def add(self, tenant: str, name: str = "") -> None:
        """Add a tenant.

        Raises:
            InputError: The id is not allowed or taken.
        """
        if check_tenant(tenant) in RESERVED_IDS:
            raise InputError(f"tenant {tenant}: this id is reserved")
        self._repository.add_tenant(tenant, name or tenant)

    def new_key(
        self, tenant: str, *, days: float | None = None, scopes: Iterable[str] = ()
    ) -> ApiKey:
        """Make a key. This is the only moment it exists in the clear.

        Args:
            tenant: Whose.
            days: It ends after so many days; never when None.
            scopes: What it may be used for, see :data:`~handbill.serving.keys.SCOPES`; everything
                when empty.

        Raises:
            MissingError: No such tenant.
            InputError: The tenant has two live keys of these scopes already, or there is no such
                scope.
        """
        key = ApiKey.new()
        expires_at = None if days is None else utc_now() + timedelta(days=days)
        self._repository.add_key(
            check_tenant(tenant),
            key.id,
            key.mac(self._pepper),
            expires_at,
            scopes=check_scopes(scopes),
        )
        return key

    def revoke(self, key_id: str) -> None:
        """End a key; the next request with it is refused."""
        self._repository.revoke_key(key_id)

    def list(self) -> list[dict[str, Any]]:
        """Tenants, their keys' ids and states, and what they used."""
        return self._repository.tenants()

    def usage_by_day(self, tenant: str, *, days: int) -> Sequence[dict[str, Any]]:
        """What a tenant used on each of the last days, oldest first."""
        since = utc_now() - timedelta(days=days)
        return self._repository.usage_by_day(check_tenant(tenant), since=since)

    def authenticate(self, text: str) -> Caller:
        """Who holds this key.

        A malformed key, an unknown id and a wrong secret take the same path and end in the
        same error.

        Raises:
            InvalidKeyError: Nobody holds it.
        """
        key = ApiKey.parse(text) or _NOBODY
        stored = self._repository.live_key(key.id)
        expected = stored.mac if stored is not None else "0" * 64
        matches = hmac.compare_digest(key.mac(self._pepper), expected)
        if stored is None or not matches:
            raise InvalidKeyError
        return Caller(tenant=stored.tenant, key=key.id, scopes=stored.scopes)

    def holder(self, key_id: str) -> Caller | None:
        """Whose key this is, for what was begun with it before; None if it was revoked or has expired."""
        stored = self._repository.live_key(key_id)
        if stored is None:
            return None
        return Caller(tenant=stored.tenant, key=key_id, scopes=stored.scopes)

    def record(self, usage: Usage) -> None:
        """Write a request's usage soon; never blocks, never raises."""
        self._writer.submit(self._repository.add_usage, usage).add_done_callback(_report)

    def close(self) -> None:
        """Write what is left, then let go of the database."""
        self._writer.shutdown(wait=True)
        self._repository.close()


def open_tenants(config: ServingConfig) -> Tenants:
    """Open a service's tenants, bringing its database up to date first."""
    config.state.mkdir(parents=True, exist_ok=True)
    migrate(config.url)
    return Tenants(Repository(config.url), load_or_create_pepper(config.pepper))


def _report(written: Future[None]) -> None:
    error = written.exception()
    if error is not None:
        log.error("usage_not_written", extra={"error": type(error).__name__})

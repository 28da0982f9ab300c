"""Who is asked in a round: enrolled, connected, and not given up on for now."""

import time
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from handbill.errors import InputError, RoundError
from handbill.federation.roster import Roster
from handbill.federation.secagg.session import MIN_COHORT
from handbill.federation.transport import Transport
from handbill.generator.artifacts import load_public_key
from handbill.server.records import Round
from handbill.server.registry import Registry
from handbill.server.settings import SETTINGS_FILE, ServerSettings

WAIT_S: Final = 180.0
# A SuperNode says every 30 s that it is there; after the server's clock has jumped ahead, all seem gone till then.
RETURN_S: Final = 45.0


class Cohort:
    """The merchants of a run, and which of them are there.

    Roster and quarantine are looked up before each attempt: who was revoked meanwhile is asked no
    more. And the roster again whenever a report is taken: that of who was revoked meanwhile does not
    count.
    """

    def __init__(self, transport: Transport, registry: Registry, settings: ServerSettings) -> None:
        """Ask ``transport`` who is there."""
        self._transport, self._registry, self._settings = transport, registry, settings
        self.roster: Roster = registry.roster()
        self._away: set[str] = set()
        least = settings.min_reports
        secure = settings.secure_aggregation.enabled
        self._fewest = max(least, MIN_COHORT) if secure else least

    def check_size(self) -> None:
        """Refuse a run of which no round could be committed.

        Raises:
            InputError: Sums are to be secure, and too few merchants are enrolled for one.
        """
        enrolled = len(self.roster.members)
        if self._settings.secure_aggregation.enabled and enrolled < MIN_COHORT:
            raise InputError(
                f"secure aggregation needs {MIN_COHORT} merchants, {enrolled} are enrolled; enrol "
                f"more, or say enabled = false under [secure_aggregation] in {SETTINGS_FILE}, "
                f"which the policy of every merchant must allow"
            )

    def wait(self, *, again: Collection[str] = ()) -> Mapping[str, Ed25519PublicKey]:
        """Wait, not for ever, until enough merchants are there.

        Args:
            again: Merchants of an attempt that failed: those who went away meanwhile are given
                :data:`RETURN_S` to come back.

        Returns:
            Whom the round asks, with the key each signs with.

        Raises:
            RoundError: They did not come within :data:`WAIT_S`.
        """
        self.roster = self._registry.roster()
        with self._registry.database.begin() as uow:
            self._away = quarantined(uow.rounds.all(), after=self._settings.quarantine_after)
        enrolled = len(self.roster.members)
        began = time.monotonic()
        missed = set(again) & self.roster.members.keys() - self._away
        while True:
            there, waited = self._there(), time.monotonic() - began
            enough = len(there) >= min(enrolled, self._fewest)
            if enough and (waited > RETURN_S or missed <= there.keys()):
                return there
            if waited > WAIT_S:
                raise RoundError(
                    f"{len(there)} of {enrolled} enrolled merchants connected "
                    f"within {WAIT_S:.0f} s, {self._fewest} needed"
                )
            time.sleep(0.2)

    def on_roster(self, merchant: str, key: Ed25519PublicKey) -> bool:
        """Whether a merchant is enrolled with this key now, whoever was when the round began."""
        with self._registry.database.begin() as uow:
            now = uow.merchants.find(merchant)
        return now is not None and load_public_key(now.public_key.encode()) == key

    def _there(self) -> dict[str, Ed25519PublicKey]:
        online = set(self._transport.merchants()) - self._away
        return {
            merchant: key for merchant, key in self.roster.members.items() if merchant in online
        }


def quarantined(rounds: Iterable[Round], *, after: int) -> set[str]:
    """Merchants that were waited for in vain again and again: not to be asked in the next round.

    Whoever was asked in ``after`` committed rounds one after the other, and is in none of them, is
    left out of as many, and then asked again. Worked out from the committed rounds alone, so that
    a server that was started again decides the same.

    Args:
        rounds: In the order they were opened.
        after: 0 leaves nobody out.
    """
    if not after:
        return set()
    misses: dict[str, int] = {}
    left_out: dict[str, int] = {}
    for one in rounds:
        if one.status != "committed" or one.stage == "personal":
            continue
        for merchant in list(left_out):
            if merchant not in one.cohort:
                left_out[merchant] -= 1
                if not left_out[merchant]:
                    del left_out[merchant]
        for merchant in one.cohort:
            misses[merchant] = 0 if merchant in one.survivors else misses.get(merchant, 0) + 1
            if misses[merchant] >= after:
                misses[merchant], left_out[merchant] = 0, after
    return set(left_out)

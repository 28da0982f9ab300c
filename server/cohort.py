"""Who is asked in a round: enrolled, connected, and not given up on for now."""

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from handbill.errors import InputError, RoundError
from handbill.federation.roster import Roster
from handbill.federation.secagg.session import MIN_COHORT
from handbill.federation.transport import Transport
from handbill.generator.artifacts import load_public_key
from handbill.server.records import Conduct, Did, Round
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

    def wait(self, run: str, *, again: Collection[str] = ()) -> Mapping[str, Ed25519PublicKey]:
        """Wait, not for ever, until enough merchants are there.

        Args:
            run: Which run asks them.
            again: Merchants of an attempt that failed: those who went away meanwhile are given
                :data:`RETURN_S` to come back.

        Returns:
            Whom the round asks, with the key each signs with.

        Raises:
            RoundError: They did not come within :data:`WAIT_S`, or too few may be asked.
        """
        self.roster = self._registry.roster()
        with self._registry.database.begin() as uow:
            rounds, conduct = uow.rounds.all(), uow.rounds.conduct()
        self._away = left_out(rounds, conduct, run=run, after=self._settings.quarantine_after)
        enrolled = len(self.roster.members)
        without = self._away | unreliable(rounds, conduct, run=run)
        if len(self.roster.members.keys() - without) >= min(enrolled, self._fewest):
            self._away = without
        away = sorted(self.roster.members.keys() & self._away)
        if enrolled - len(away) < min(enrolled, self._fewest):
            raise RoundError(
                f"{enrolled - len(away)} of {enrolled} enrolled merchants can be asked, "
                f"{self._fewest} needed; left out for what they did in earlier rounds: "
                f"{', '.join(away)}. progress.jsonl says what it was; another run asks those again "
                f"that broke the protocol in this one"
            )
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


def left_out(
    rounds: Iterable[Round], conduct: Sequence[Conduct], *, run: str, after: int
) -> set[str]:
    """Merchants that are not to be asked next, by what they did in attempts before.

    Whoever broke the protocol, in an attempt that was committed or not, is asked no more in that
    run: its next contribution may cost all others the budget of a round.
    Whoever was waited for in vain in ``after`` committed rounds one after the other, or was in a sum
    that was spoiled, is left out of as many, and then asked again. Worked out from what is written
    alone, so that a server that was started again decides the same.

    Args:
        rounds: Every attempt, in the order they were opened.
        conduct: What merchants did in them.
        run: The run that would ask.
        after: 0 leaves nobody out for having missed rounds.
    """
    broke = {one.merchant for one in conduct if one.run == run and one.what == "broke"}
    return broke | (_resting(rounds, Did(conduct), after) if after else set())


def unreliable(rounds: Iterable[Round], conduct: Iterable[Conduct], *, run: str) -> set[str]:
    """Who was asked to sign for a sum of a run and was not there to open it, where it stayed closed.

    The others have paid for that round. It may have been a network, or one of them on purpose.
    """
    did = Did(conduct)
    lost = [one for one in rounds if one.run == run and one.status != "committed"]
    return {m for one in lost for m in did(one, "signed").keys() & did(one, "missed").keys()}


def _resting(rounds: Iterable[Round], did: Did, after: int) -> set[str]:
    misses: dict[str, int] = {}
    resting: dict[str, int] = {}
    for one in rounds:
        if one.status != "committed" or one.stage == "personal":
            continue
        for merchant in list(resting):
            if merchant not in one.cohort:
                resting[merchant] -= 1
                if not resting[merchant]:
                    del resting[merchant]
        missed = did(one, "missed") | did(one, "spoiled")
        for merchant in one.cohort:  # who was not needed, since others were sooner, is neither
            if merchant in missed:
                misses[merchant] = misses.get(merchant, 0) + 1
            elif merchant in one.survivors:
                misses[merchant] = 0
            if misses.get(merchant, 0) >= after:
                misses[merchant], resting[merchant] = 0, after
    return set(resting)

"""The facts the operator keeps, as plain values: what repositories take and return.

Times are ISO 8601 in UTC, digests ``sha256:<hex>``, sizes bytes. A tenant of ``""`` means the
model everybody shares. Field names equal the columns of ``orm.py``.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

from handbill.errors import InputError, LeaseError, RoundError
from handbill.federation.rounds import What
from handbill.generator.artifacts import canonical_json, sha256_digest
from handbill.generator.model_specs import spec_from_dict, trains

Stage = Literal["warmup", "global", "personal"]
RoundStatus = Literal["open", "committed", "abandoned"]
RunStatus = Literal["running", "finished", "failed"]
STAGES: Final = ("warmup", "global", "personal")
WHY_CHARS: Final = 500  # of a reason that is kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Merchant:
    """A shop that may train: its signing key (PEM) and its Flower node key."""

    id: str
    name: str
    public_key: str
    node_key: str
    enrolled_at: str
    revoked_at: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """A merchant may enrol once with what ``key`` was made from."""

    key: str
    merchant: str
    expires_at: str
    used_at: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Who holds a lease, and how often it has said so."""

    holder: str
    beat: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training run: a base model, a recipe and an adapter specification.

    Attributes:
        publish: Whether the result is served when it is done.
        reason: Why it failed.
    """

    id: str
    base_name: str
    base_digest: str
    recipe: dict[str, Any]
    adapter: dict[str, Any]
    started_at: str
    status: RunStatus = "running"
    ended_at: str = ""
    publish: bool = False
    reason: str = ""

    def check_under_way(self) -> None:
        """Refuse, with a LeaseError, a run that was ended."""
        if self.status != "running":
            raise LeaseError(f"run {self.id} was ended: {self.status} {self.reason}".rstrip())

    def check_terms(self, now: "Run") -> None:
        """Refuse to go on with this run on other terms: its merchants would, each by itself.

        Raises:
            InputError: Naming what it began with.
        """
        kind, other = (trains(spec_from_dict(run.adapter)) for run in (self, now))
        if kind != other:
            raise InputError(f"run {self.id} trains {kind}; continue it with --model {kind}")
        before, after = (
            {**run.recipe, **run.adapter, "base": run.base_digest} for run in (self, now)
        )
        was = ", ".join(f"{n}={v}" for n, v in before.items() if after.get(n) != v)
        if was:
            raise InputError(
                f"run {self.id} began with {was}; server.toml says otherwise now. Put it back to "
                "go on, or start a new run"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One attempt at one round of a run; at most one attempt is ever ``committed``."""

    run: str
    number: int
    stage: Stage
    attempt: int
    opened_at: str
    status: RoundStatus = "open"
    cohort: list[str] = field(default_factory=list)
    survivors: list[str] = field(default_factory=list)
    parent: str = ""
    aggregate: str = ""
    ledger_heads: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    bytes_down: int = 0
    bytes_up: int = 0
    seconds: float = 0.0
    closed_at: str = ""

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise RoundError(f"round stage {self.stage!r} is not one of {', '.join(STAGES)}")
        if self.number < 1:
            raise RoundError(f"round number {self.number} is not 1 or more")
        if strangers := sorted(set(self.survivors) - set(self.cohort)):
            raise RoundError(f"{self.name}: survivors outside the cohort: {', '.join(strangers)}")
        for name, value in self.metrics.items():
            if not math.isfinite(value):
                raise RoundError(f"{self.name}: metric {name} is {value}, not a finite number")

    @property
    def name(self) -> str:
        """Return ``run/stage/number``, the round's name in messages and in the audit chain."""
        return f"{self.run}/{self.stage}/{self.number}"

    def facts(self) -> str:
        """Return the digest of everything here, which the audit entry of a commit holds."""
        return sha256_digest(canonical_json(asdict(self)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Conduct:
    """What a merchant did in an attempt at a round (:data:`~handbill.federation.rounds.What`)."""

    run: str
    number: int
    stage: Stage
    attempt: int
    merchant: str
    what: What
    why: str  # cut to WHY_CHARS


class Did:
    """Who did what in an attempt, and why: ``did(attempt, "missed")`` gives reasons by merchant."""

    def __init__(self, conduct: Iterable[Conduct]) -> None:
        """Sort what was written by attempt."""
        self._found: dict[tuple[object, ...], dict[str, str]] = {}
        for one in conduct:
            place = one.run, one.stage, one.number, one.attempt, one.what
            self._found.setdefault(place, {})[one.merchant] = one.why

    def __call__(self, attempt: Round, what: What) -> dict[str, str]:
        """Return the reasons by merchant."""
        place = attempt.run, attempt.stage, attempt.number, attempt.attempt, what
        return self._found.get(place, {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """One sealed adapter in the store; ``path`` is relative to the registry's folder."""

    digest: str
    kind: str
    tenant: str
    version: int
    path: str
    manifest: dict[str, Any]
    size_bytes: int
    created_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """One step of a tenant's channel history; the highest ``serial`` is what is served.

    ``withdraw`` takes the channel away: its ``digest`` was served until then, now it is what
    everyone is served. ``canary`` tries its ``digest`` on ``percent`` of the requests, beside
    ``stable``, which goes on being served (empty where nothing was); at 0 the trial is over.
    """

    tenant: str
    serial: int
    digest: str
    action: Literal["publish", "rollback", "withdraw", "canary"]
    published_at: str
    stable: str = ""
    percent: int = 0

    @property
    def name(self) -> str:
        """Return ``tenant#serial``, the step's name in the audit chain."""
        return f"{self.tenant or 'global'}#{self.serial}"

    @property
    def served(self) -> str:
        """Return the digest that is served from here on; empty for a withdrawn channel."""
        if self.action == "canary":
            return self.stable
        return "" if self.action == "withdraw" else self.digest

    @property
    def candidate(self) -> str:
        """Return the digest that is tried from here on; empty when none is."""
        return self.digest if self.percent else ""

    @property
    def audited(self) -> str:
        """Return what the audit chain says of it."""
        return f"{self.digest} on {self.percent} %" if self.action == "canary" else self.digest


def still_published(history: Sequence[Publication]) -> list[str]:
    """Return the digests that a channel can go back through; the last is served now.

    Nobody goes back past a withdrawal.
    """
    digests: list[str] = []
    for step in history:
        if step.action == "withdraw":
            digests = []
        elif step.action == "rollback":
            digests = digests[:-1]
        elif step.action == "publish":
            digests.append(step.digest)
    return digests

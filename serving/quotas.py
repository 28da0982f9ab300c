"""What a tenant may use: requests and tokens in a minute, tokens in a day and a month, at once.

Counted in the database, so that limits hold over restarts and for all gateways together. A
request's most is reserved before it runs and settled when it ends; a gateway that dies in between
leaves the reservation counted. So a day's count may be too high after a crash, never too low.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self
from uuid import uuid4

from handbill.errors import InputError
from handbill.generator.artifacts import check_tenant
from handbill.serving.config import ServingConfig
from handbill.serving.errors import BadRequestError, RateLimitError
from handbill.serving.quota_repository import QuotaRepository

log = logging.getLogger(__name__)

LEASE_S: Final = 20.0  # after which what a dead gateway was running is not counted any more
_BEAT_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """Limits of one tenant; 0 is none.

    Attributes:
        requests_per_minute: Counted in answers: a request for 3 copies counts 3.
        tokens_per_minute: Of prompts and answers, as the others.
        tokens_per_day: Of a day in UTC.
        tokens_per_month: Of a calendar month in UTC.
        concurrent: Requests that run at once.
    """

    requests_per_minute: float = 0.0
    tokens_per_minute: int = 0
    tokens_per_day: int = 0
    tokens_per_month: int = 0
    concurrent: int = 0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 <= value <= 10**12:
                raise InputError(f"{name}={value} not in [0, 10**12]")

    @classmethod
    def of_service(cls, config: ServingConfig) -> Self:
        """What holds for a tenant without limits of its own."""
        return cls(**{field.name: getattr(config, field.name) for field in fields(cls)})

    def over(self, service: "Quota") -> "Quota":
        """These limits, and the service's where there is none."""
        own = {name: value for name, value in asdict(self).items() if value}
        return replace(service, **own)


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What a tenant has used.

    Attributes:
        requests: Answers not yet paid for by time: they drain at the allowed rate.
        tokens: The same of tokens.
        at: When the two were right, in seconds since 1970.
        day: Date in UTC, and the tokens of that day.
        month: The same of the month.
    """

    requests: float = 0.0
    tokens: float = 0.0
    at: float = 0.0
    day: str = ""
    day_tokens: int = 0
    month: str = ""
    month_tokens: int = 0

    def by(self, now: float, quota: Quota) -> "Use":
        """The same at a later time; a clock that went back drains nothing."""
        passed_min = max(0.0, now - self.at) / 60
        today = datetime.fromtimestamp(now, UTC)
        day, month = today.strftime("%Y-%m-%d"), today.strftime("%Y-%m")
        return Use(
            requests=_drained(self.requests, quota.requests_per_minute, passed_min),
            tokens=_drained(self.tokens, quota.tokens_per_minute, passed_min),
            at=max(now, self.at),
            day=max(day, self.day),
            day_tokens=self.day_tokens if self.day >= day else 0,
            month=max(month, self.month),
            month_tokens=self.month_tokens if self.month >= month else 0,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """A request that was let in: what it reserved, and when."""

    tenant: str
    tokens: int
    day: str
    month: str
    running: bool


class Quotas:
    """The limits of a service's tenants.

    Args:
        repository: An up-to-date serving database.
        service: Limits of tenants without their own.
        burst: Answers that a tenant that was quiet may ask for at once; not more than in a minute, but
            for what one request may ask for.
        choices: Most answers of one request.
        clock: Seconds since 1970.
    """

    def __init__(
        self,
        repository: QuotaRepository,
        service: Quota,
        *,
        burst: int,
        choices: int = 1,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._repository = repository
        self._service = service
        self._burst = burst
        self._choices = choices
        self._clock = clock
        self._gateway = uuid4().hex
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Keep this gateway's running requests counted, in a thread of its own."""
        self._thread = threading.Thread(target=self._beat, name="quotas", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Let go of the database; what ran here is not counted any more."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
        self._repository.leave(self._gateway)
        self._repository.close()

    def set(self, tenant: str, **limits: Any) -> None:
        """Give a tenant limits of its own; 0 gives the service's back, what is not named stays.

        Raises:
            InputError: It is below 0.
            MissingError: No such tenant.
        """
        own = replace(Quota(**self._repository.quota(check_tenant(tenant))), **limits)
        self._repository.set_quota(tenant, asdict(own))

    def show(self, tenant: str) -> list[dict[str, Any]]:
        """A tenant's limits, what of each is used now, and whether it is its own."""
        own = Quota(**self._repository.quota(check_tenant(tenant)))
        quota = own.over(self._service)
        now = self._clock()
        use = Use(**self._repository.use(tenant)).by(now, quota)
        used = {
            "requests_per_minute": round(use.requests, 1),
            "tokens_per_minute": round(use.tokens),
            "tokens_per_day": use.day_tokens,
            "tokens_per_month": use.month_tokens,
            "concurrent": self._repository.running(tenant, now),
        }
        return [
            {
                "quota": name,
                "limit": limit or None,
                "used": used[name],
                "own": bool(getattr(own, name)),
            }
            for name, limit in asdict(quota).items()
        ]

    def admit(
        self, tenant: str, answers: int, *, tokens: int = 0, background: bool = False
    ) -> Grant:
        """Let a request in, and count it until :meth:`release`.

        Args:
            tenant: Whose.
            answers: How many it asks for.
            tokens: The most it can take.
            background: It waits for room anyway: it counts for the day and the month only.

        Raises:
            RateLimitError: A limit is reached; says which and when to come back.
            BadRequestError: It could never be let in.
        """
        now = self._clock()
        with self._repository.of(tenant) as books:
            quota = Quota(**books.quota).over(self._service)
            use = Use(**books.use).by(now, quota)
            _check_periods(quota, use, tokens, now)
            if not background:
                _check_rates(quota, use, answers, tokens, capacity=self._capacity(quota))
                running = books.running(now)
                if quota.concurrent and running >= quota.concurrent:
                    raise RateLimitError(
                        f"You have {running} requests running, the most allowed.",
                        retry_after_s=1.0,
                        quota="concurrent",
                        limit=quota.concurrent,
                    )
                books.run(self._gateway, +1, expires_at=now + LEASE_S)
                use = replace(use, requests=use.requests + answers, tokens=use.tokens + tokens)
            use = replace(
                use,
                day_tokens=use.day_tokens + tokens,
                month_tokens=use.month_tokens + tokens,
            )
            books.write(asdict(use))
        return Grant(
            tenant=tenant, tokens=tokens, day=use.day, month=use.month, running=not background
        )

    def release(self, grant: Grant, *, used: int | None = None) -> None:
        """End a request: what it took takes the place of what it reserved.

        Args:
            grant: What :meth:`admit` gave.
            used: Tokens it took; all it reserved when not known.
        """
        more = 0 if used is None else used - grant.tokens
        now = self._clock()
        with self._repository.of(grant.tenant) as books:
            if grant.running:
                books.run(self._gateway, -1, expires_at=now + LEASE_S)
            use = Use(**books.use).by(now, Quota(**books.quota).over(self._service))
            if grant.running:
                use = replace(use, tokens=max(0.0, use.tokens + more))
            if use.day == grant.day:  # a reservation of yesterday stays yesterday's
                use = replace(use, day_tokens=max(0, use.day_tokens + more))
            if use.month == grant.month:
                use = replace(use, month_tokens=max(0, use.month_tokens + more))
            books.write(asdict(use))

    def _capacity(self, quota: Quota) -> float:
        return min(self._burst, max(quota.requests_per_minute, self._choices))

    def _beat(self) -> None:
        while not self._closing.wait(_BEAT_S):
            try:
                now = self._clock()
                self._repository.renew(self._gateway, now=now, expires_at=now + LEASE_S)
            except Exception as error:  # noqa: BLE001 - a full disk, say; the next time may work
                log.error("lease_not_renewed", extra={"error": type(error).__name__})  # noqa: TRY400


def open_quotas(config: ServingConfig) -> Quotas:
    """Open a service's limits; its database is up to date already."""
    return Quotas(
        QuotaRepository(config.url),
        Quota.of_service(config),
        burst=config.burst,
        choices=config.max_choices,
    )


def _drained(debt: float, per_minute: float, passed_min: float) -> float:
    """What is left of a debt; without a rate there is none."""
    return max(0.0, debt - passed_min * per_minute) if per_minute else 0.0


def _check_rates(quota: Quota, use: Use, answers: int, tokens: int, *, capacity: float) -> None:
    """Refuse what comes too fast."""
    rate = quota.requests_per_minute
    over = use.requests + answers - capacity
    if rate and over > 0:
        raise RateLimitError(
            f"Rate limit of {rate:g} answers a minute reached.",
            retry_after_s=60 * over / rate,
            quota="requests_per_minute",
            limit=rate,
        )
    rate = quota.tokens_per_minute
    if rate and tokens > rate:
        raise _never("tokens_per_minute", rate, tokens)
    over = use.tokens + tokens - rate
    if rate and over > 0:
        raise RateLimitError(
            f"Rate limit of {rate} tokens a minute reached; this request may take {tokens}.",
            retry_after_s=60 * over / rate,
            quota="tokens_per_minute",
            limit=rate,
        )


def _check_periods(quota: Quota, use: Use, tokens: int, now: float) -> None:
    """Refuse what does not fit into the day or the month."""
    today = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    next_month = (today.replace(day=1) + timedelta(days=32)).replace(day=1)
    for name, limit, used, ends in (
        ("tokens_per_month", quota.tokens_per_month, use.month_tokens, next_month),
        ("tokens_per_day", quota.tokens_per_day, use.day_tokens, today + timedelta(days=1)),
    ):
        if limit and tokens > limit:
            raise _never(name, limit, tokens)
        if limit and used + tokens > limit:
            raise RateLimitError(
                f"Quota of {limit} {name.replace('_per_', ' a ')} reached: {used} are used and this "
                f"request may take {tokens}. It begins anew at {ends.isoformat()}.",
                retry_after_s=ends.timestamp() - now,
                quota=name,
                limit=limit,
                exhausted=True,
            )


def _never(name: str, limit: float, tokens: int) -> BadRequestError:
    return BadRequestError(
        f"max_tokens: this request may take {tokens} tokens and your quota is {limit:g} "
        f"{name.replace('_per_', ' a ')}; ask for fewer",
        param="max_tokens",
    )

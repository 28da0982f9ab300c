"""From an authenticated request to answers: route, limits, engine, usage. No HTTP here."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from statistics import fmean
from typing import Any

from handbill.errors import InputError
from handbill.generator.sentiment import SentimentModel
from handbill.serving.batch.store import open_batches
from handbill.serving.checking import Check, Choose, Keep, approved, best_approved, marked
from handbill.serving.config import ServingConfig
from handbill.serving.errors import ModelNotFoundError, UnavailableError, not_the_models
from handbill.serving.feedback.store import open_feedback
from handbill.serving.limits import Strangers
from handbill.serving.measures import Measures
from handbill.serving.orm import utc_now
from handbill.serving.own_scenarios import OwnScenarios
from handbill.serving.quotas import Grant, open_quotas
from handbill.serving.registry import Registry, Route
from handbill.serving.reports import EngineReports
from handbill.serving.repository import Usage
from handbill.serving.schemas import SchemaTrial
from handbill.serving.sequences import Delta, Engine, EngineStats, Sampling, Sequence
from handbill.serving.streams import Split, merge
from handbill.serving.tenants import Caller, Tenants
from handbill.serving.tracing import carried, noted

log = logging.getLogger(__name__)

# A registry that was not looked at for so many polls is stale.
_STALE_POLLS = 30
_RETRY_TEMPERATURE = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One request, ready to run: its answers share a route.

    Attributes:
        prompts: Token ids of each.
        n: Answers to each.
        check: Finds what is wrong with an answer.
        attempts: Candidates of each answer of which the first that passes is served; 0 serves any
            answer, with its findings.
        keep: Takes a blocked copy to the review queue.
        candidates: Pieces written at once of which ``choose`` takes the best; 0 is none.
        choose: Takes them.
        finish: Makes a piece of copy as it is served.
        finish_tokens: The most tokens that takes.
        covers: Tells how much of the product a piece of copy states.
        background: It is of a batch, which waits for room.
    """

    caller: Caller
    request: str
    endpoint: str
    route: Route
    prompts: tuple[tuple[int, ...], ...]
    sampling: Sampling
    check: Check
    attempts: int = 0
    keep: Keep | None = None
    candidates: int = 0
    choose: Choose | None = None
    finish: Callable[[Delta], Awaitable[Delta]] | None = None
    finish_tokens: int = 0
    covers: Callable[[str], float | None] | None = None
    n: int = 1
    background: bool = False

    @property
    def searches(self) -> bool:
        """Whether the answers to a prompt are found together."""
        return self.sampling.num_beams > 1

    @property
    def answers(self) -> int:
        """All answers."""
        return len(self.prompts) * self.n

    @property
    def rows(self) -> int:
        """Rows of the engine's it takes."""
        each = self.sampling.num_beams if self.searches else max(self.n, self.candidates)
        return len(self.prompts) * each

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompts, each counted once however many answers there are to it."""
        return sum(map(len, self.prompts))


@dataclass(slots=True)
class Spent:
    """What a request took so far; not known until it says so."""

    tokens: int | None = None


class Gateway:
    """Everything a request needs, made once per process."""

    def __init__(
        self,
        config: ServingConfig,
        *,
        engine: Engine,
        registry: Registry,
        tenants: Tenants,
        tokenizer: Any,
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.tenants = tenants
        self.feedback = open_feedback(config)
        self.batches = open_batches(config)
        self.quotas = open_quotas(config)
        self.strangers = Strangers()
        self.schemas = SchemaTrial(tokenizer)
        self.scenarios = OwnScenarios(config.scenarios_folder)
        self._engine = engine
        self._registry = registry
        self.reports = EngineReports()
        self.measures = Measures(config, engine.stats, self.reports, registry)

    def start(self) -> None:
        """Begin to follow the registry; called in the event loop that answers requests."""
        self.measures.start()
        self._registry.start(self.config.poll_s)
        self.feedback.start()
        self.quotas.start()

    def close(self) -> None:
        """Stop following the registry; write what usage is left."""
        self._registry.close()
        self.measures.close()
        self.feedback.close()
        self.schemas.close()
        self.tenants.close()
        self.quotas.close()
        self.batches.close()

    @property
    def engine(self) -> Engine:
        """What writes and scores."""
        return self._engine

    @cached_property
    def sentiment(self) -> SentimentModel | None:
        """What tells the tone of candidates; None where the operator has trained none."""
        try:
            return open_sentiment(self.config)
        except InputError:  # it was right when the service began
            log.error("sentiment_refused")  # noqa: TRY400 - which file is the operator's business
            return None

    def models(self, caller: Caller) -> list[str]:
        """Every name the caller may use, all of them for what it is served now."""
        routes = self._registry.choices(caller.tenant, "")
        return list(dict.fromkeys(name for route in routes for name in _names(caller, route)))

    def route(self, caller: Caller, model: str, *, who: str = "", adapter: str = "") -> Route:
        """What the caller is served. The tenant decides, the name can only agree.

        Args:
            caller: Who asks.
            model: A name of what the caller is served now.
            who: The answer is for: decides whether a candidate that is tried writes it, where the
                name fits both.
            adapter: Of a variant in an experiment; decides in the name's place.

        Raises:
            ModelNotFoundError: Any other name, whether or not it exists for someone else.
            UnavailableError: The variant's adapter is not published now.
        """
        if adapter:
            variant = self._registry.variant(caller.tenant, adapter)
            if variant is None:
                raise UnavailableError("This variant's adapter is not published now.")
            return variant
        for route in self._registry.choices(caller.tenant, who):
            if model in _names(caller, route):
                return route
        raise ModelNotFoundError

    async def run(self, job: Job) -> AsyncGenerator[tuple[int, Delta], None]:
        """Stream the answers, each piece with its answer's index.

        However it ends, also when the reader goes away, the rows are given back and the
        request's usage is written.
        """
        most = job.prompt_tokens + job.rows * job.sampling.max_tokens + job.finish_tokens
        async with self.admit(
            job.caller.tenant, job.rows, tokens=most, background=job.background
        ) as spent:
            noted("admitted", {"rows": job.rows, "artifact": job.route.digest})
            started_at, started_s, written = utc_now(), time.monotonic(), 0
            prompted = job.prompt_tokens
            outcome, first_s = "disconnect", None
            passed, ended, covered = 0, 0, list[float]()
            try:
                if job.sampling.json_schema:
                    await self.schemas.check(job.caller.tenant, job.sampling.json_schema)
                async with aclosing(merge(self._streams(job), each=job.n)) as pieces:
                    async for index, delta in pieces:
                        if first_s is None:
                            first_s = time.monotonic() - started_s
                            noted("first_piece")
                        written += delta.n_tokens
                        if job.finish is not None and delta.text:
                            delta = await job.finish(delta)  # noqa: PLW2901 - the same, finished
                            prompted += delta.n_prompt_tokens
                        if (
                            job.covers
                            and delta.text
                            and (share := job.covers(delta.text)) is not None
                        ):
                            covered.append(share)
                        ended += delta.finish_reason is not None
                        passed += delta.finish_reason in ("stop", "length")
                        yield index, delta
                outcome = "done" if passed or not ended else "blocked"
            except Exception as error:
                outcome = "refused" if not_the_models(error) else "error"
                raise
            finally:
                usage = Usage(
                    tenant=job.caller.tenant,
                    key=job.caller.key,
                    request=job.request,
                    endpoint=job.endpoint,
                    artifact=job.route.digest,
                    prompt_tokens=prompted,
                    completion_tokens=written,
                    outcome=outcome,
                    started_at=started_at,
                    duration_ms=round((time.monotonic() - started_s) * 1000),
                    coverage=fmean(covered) if covered else None,
                )
                noted("ended", {"outcome": outcome, "tokens": written})
                spent.tokens = prompted + written
                self.tenants.record(usage)
                self.measures.ended(usage, first_s=first_s)

    @asynccontextmanager
    async def admit(
        self, tenant: str, answers: int, *, tokens: int = 0, background: bool = False
    ) -> AsyncIterator[Spent]:
        """Count a request against its tenant's limits while it runs.

        Raises:
            RateLimitError: A limit is reached.
        """
        admit = partial(self.quotas.admit, tokens=tokens, background=background)
        # A client that goes away meanwhile must not leave a request counted that nobody ends.
        admitting = asyncio.ensure_future(asyncio.to_thread(admit, tenant, answers))
        try:
            grant = await asyncio.shield(admitting)
        except asyncio.CancelledError:
            admitting.add_done_callback(self._release_unused)
            raise
        spent = Spent()
        try:
            yield spent
        finally:
            # Before the answer's end is sent, so that who asks one thing after another never has two
            # running. A client that goes away meanwhile does not stop the thread.
            await asyncio.wait([self._release(grant, used=spent.tokens)])

    def _release_unused(self, admitting: "asyncio.Future[Grant]") -> None:
        if not admitting.cancelled() and admitting.exception() is None:
            self._release(admitting.result(), used=0)

    def _release(self, grant: Grant, *, used: int | None) -> "asyncio.Future[None]":
        """Have a request not counted any more; never raises."""

        def release() -> None:
            try:
                self.quotas.release(grant, used=used)
            except Exception as error:  # noqa: BLE001 - a full disk, say: the answer stands
                log.error("quota_not_released", extra={"error": type(error).__name__})  # noqa: TRY400

        return asyncio.get_running_loop().run_in_executor(None, release)

    async def engine_stats(self) -> EngineStats:
        """What the engine is doing.

        Raises:
            UnavailableError: It does not answer.
        """
        return await self._engine.stats()

    async def health(self) -> dict[str, int]:
        """Counts for the operator.

        Raises:
            UnavailableError: The engine does not answer, or the registry was not looked at.
        """
        if time.monotonic() - self._registry.refreshed_at > _STALE_POLLS * self.config.poll_s:
            raise UnavailableError("The registry is not being followed.")
        stats = await self._engine.stats()
        return {
            "running": stats.running,
            "waiting": stats.waiting,
            "adapters": stats.adapters,
            "refused_publications": self._registry.refused,
        }

    def _streams(self, job: Job) -> list[AsyncGenerator[Delta, None]]:
        """A stream for every prompt, of all answers to it."""
        return [self._answers(job, number) for number in range(len(job.prompts))]

    def _answers(self, job: Job, number: int) -> AsyncGenerator[Delta, None]:
        first = Sequence(
            tenant=job.caller.tenant,
            prompt=job.prompts[number],
            adapter=job.route.adapter,
            sampling=job.sampling.for_answer(number * job.n),
            answers=job.n,
            trace=carried(),
        )
        if not job.attempts:
            return marked(self._engine.submit(first), job.check)
        if job.searches or job.candidates:
            found = self._engine.submit(replace(first, answers=job.rows // len(job.prompts)))
            return best_approved(found, job.check, answers=job.n, keep=job.keep, choose=job.choose)
        return self._approved(job, first)

    async def _approved(self, job: Job, first: Sequence) -> AsyncGenerator[Delta, None]:
        """All answers to a prompt; for one that is blocked another is written, by itself."""
        candidates = Split(self._engine.submit(first), job.n)

        def write(index: int, attempt: int) -> AsyncGenerator[Delta, None]:
            if not attempt:
                return candidates.of(index)
            sampling = first.sampling.for_answer(index + attempt * job.answers)
            if not sampling.temperature:  # the likeliest text would be the same again
                sampling = replace(sampling, temperature=_RETRY_TEMPERATURE)
            return self._engine.submit(replace(first, sampling=sampling, answers=1))

        streams = [
            approved(partial(write, index), job.check, attempts=job.attempts, keep=job.keep)
            for index in range(job.n)
        ]
        async with aclosing(candidates), aclosing(merge(streams)) as pieces:
            async for index, delta in pieces:
                yield replace(delta, index=index)


def open_sentiment(config: ServingConfig) -> SentimentModel | None:
    """The sentiment model; None where the operator has named and trained none.

    Raises:
        InputError: It is not there, or damaged.
    """
    file = config.sentiment_file
    return SentimentModel.load(file) if config.sentiment or file.is_file() else None


def _names(caller: Caller, route: Route) -> list[str]:
    return [
        "handbill",
        "default",
        caller.tenant,
        f"{caller.tenant}@{route.version}",
        route.digest,
    ]

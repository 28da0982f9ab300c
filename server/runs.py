"""Training runs, and who sees to it that they end.

A run is under way from when its row says so until the row says how it ended. `handbill server train`
writes the row; `handbill server run` does the rest (:class:`RunKeeper`): it submits to Flower what is
under way, and again when the ServerApp died, or with the whole machine. A run goes on after its
last committed round.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Final, Protocol

from handbill.errors import InputError, LeaseError
from handbill.federation.flower import FlowerError
from handbill.federation.messages import Recipe
from handbill.generator.adapters import AdapterSpec, top_layers
from handbill.generator.artifacts import utc_now
from handbill.generator.base_models import BaseModel, resolve_base
from handbill.generator.model_specs import ModelSpec, Trains
from handbill.server.lease import Watch
from handbill.server.orm import DatabaseError
from handbill.server.progress import Progress
from handbill.server.records import Round, Run, Stage
from handbill.server.registry import Registry
from handbill.server.settings import ServerSettings

log = logging.getLogger(__name__)

RESTARTS: Final = 5
_LOOK_S: Final = 1.0
# How long a ServerApp may take until it holds the lease before Flower is asked what became of it;
# the question starts a process of Flower's.
_START_S: Final = 30.0


def adapter_spec(settings: ServerSettings, base: BaseModel) -> AdapterSpec:
    """The adapter that the operator's settings describe."""
    adapter = settings.adapter
    return AdapterSpec(
        rank=adapter.rank,
        alpha=adapter.alpha,
        layers=top_layers(base, adapter.layers),
        seed=adapter.seed,
    )


def new_run(run: str, base: BaseModel, spec: ModelSpec, recipe: Recipe, *, publish: bool) -> Run:
    """A run that begins now."""
    return Run(
        id=run,
        base_name=base.name,
        base_digest=base.digest,
        recipe=asdict(recipe),
        adapter=spec.to_dict(),
        started_at=utc_now(),
        publish=publish,
    )


def begin(
    registry: Registry, settings: ServerSettings, run: str, *, what: Trains, publish: bool
) -> None:
    """Write that a run is under way: a new one, or one that ended and is to go on.

    Raises:
        InputError: Another run is under way, or this one trains something else.
    """
    with registry.database.begin() as uow:
        for other in uow.rounds.runs():
            if other.status == "running" and other.id != run:
                raise InputError(
                    f"run {other.id} is under way; wait until it is done, or end it: handbill "
                    f"server end {other.id}"
                )
    settings = settings.of_run(what)
    base = resolve_base(settings.base)
    spec = settings.interest.spec if what == "interest" else adapter_spec(settings, base)
    registry.start_run(new_run(run, base, spec, settings.recipe, publish=publish))


def standing(run: Run, rounds: Iterable[Round]) -> dict[Stage, tuple[int, int]]:
    """Of each stage of a run, how many rounds are committed, and of how many."""
    done = Counter(r.stage for r in rounds if (r.run, r.status) == (run.id, "committed"))
    planned: dict[Stage, int] = {
        "warmup": run.recipe.get("warmup_rounds", 0),
        "global": run.recipe["rounds"],
        "personal": 1 if run.recipe.get("personal_steps") else 0,
    }
    return {stage: (done[stage], count) for stage, count in planned.items() if count}


class Submits(Protocol):
    """What a :class:`RunKeeper` asks of the SuperLink."""

    def healthy(self) -> bool:
        """Whether it answers."""

    def submit(self, run: str, *, mode: str) -> int:
        """Start the ServerApp for a run; returns Flower's id of it."""

    def status(self, flower_run: int) -> str:
        """Flower's word on it."""


class RunKeeper:
    """Keeps every run that is under way going, one after the other, until it has ended."""

    def __init__(
        self,
        registry: Registry,
        superlink: Submits,
        *,
        progress: Progress,
        say: Callable[[str], None],
    ) -> None:
        """Look at ``registry``, submit to ``superlink``.

        Args:
            registry: Its rows say what is under way, and its lease who takes rounds.
            superlink: Where runs are submitted.
            progress: Gets what whoever waits for a run is to know.
            say: Gets a sentence about each run that is taken up.
        """
        self._registry, self._superlink = registry, superlink
        self._progress, self._say = progress, say
        self._watch = Watch()
        self._run, self._done, self._starts = "", -1, 0
        self._flower_run: int | None = None  # submitted, and not seen to hold the lease yet
        self._next_look = self._ask_at = 0.0

    def look(self) -> None:
        """See whether a run needs a ServerApp; to be called often."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + _LOOK_S
        try:
            self._look()
        except (DatabaseError, FlowerError) as error:  # either may come back
            log.warning("run_not_looked_after", extra={"error": str(error)})
        except Exception:  # such as a full disk: the server goes on
            log.exception("run_not_looked_after")

    def _look(self) -> None:
        with self._registry.database.begin() as uow:
            run = next((run for run in uow.rounds.runs() if run.status == "running"), None)
            gone = self._watch.gone(uow.leases.get())
            stands = {} if run is None else standing(run, uow.rounds.all(run.id))
        if run is None or not gone:  # nothing to do, or somebody does it: nobody is on the way now
            self._flower_run = None
        elif self._flower_run is None or self._died_early(self._flower_run):
            self._take_up(run, stands)

    def _died_early(self, flower_run: int) -> bool:
        if time.monotonic() < self._ask_at:
            return False
        self._ask_at = time.monotonic() + _START_S
        return self._superlink.status(flower_run).startswith("finished")

    def _take_up(self, run: Run, stands: dict[Stage, tuple[int, int]]) -> None:
        if not self._superlink.healthy():  # it is being started again
            return
        done = sum(committed for committed, _ in stands.values())
        if (run.id, done) != (self._run, self._done):
            self._run, self._done, self._starts = run.id, done, 0
        if self._starts == RESTARTS:
            self._give_up(run)
            return
        self._flower_run = self._superlink.submit(run.id, mode="train")
        self._ask_at = time.monotonic() + _START_S
        self._starts += 1
        at = next(
            (f"{stage} round {n + 1} of {of}" for stage, (n, of) in stands.items() if n < of),
            "its end",
        )
        log.info("run_taken_up", extra={"run": run.id, "at": at})
        self._say(f"run {run.id} is taken up at {at}")

    def _give_up(self, run: Run) -> None:
        reason = f"the ServerApp died {RESTARTS} times in one round; see logs/serverapp.log"
        fail(self._registry, self._progress, run.id, reason)


def fail(registry: Registry, progress: Progress, run: str, reason: str) -> None:
    """Write that a run cannot go on, and tell whoever waits for it."""
    try:
        registry.end_run(run, "failed", reason)
    except LeaseError:  # it is another coordinator's now, or ended
        return
    log.error("run_failed", extra={"run": run, "reason": reason})
    progress.note("failed", run=run, error=reason)

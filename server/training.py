"""A training run: rounds until the plan is done, each committed once, then the shops' own adapters.

The run can be started again at any point: it goes on after its last committed round. Nothing here
knows Flower or SQL; it speaks to a :class:`~handbill.federation.transport.Transport` and to the
:class:`~handbill.server.registry.Registry`.
"""

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from handbill.errors import ProtocolError
from handbill.federation.aggregation import OptimizerState
from handbill.federation.messages import Report, Stage
from handbill.federation.rounds import RoundOutcome, RoundPlan, run_round
from handbill.federation.secagg.ring import Ring
from handbill.federation.transport import Transport
from handbill.generator.adapters import Tensors, check_tensors
from handbill.generator.artifacts import load_or_create_key
from handbill.generator.base_models import BaseModel, resolve_base
from handbill.generator.lora import LoraModel
from handbill.generator.model_specs import (
    ModelSpec,
    Trains,
    read_tensors,
    shapes_of,
    trains,
    untrained,
    write_model,
)
from handbill.server.attempts import Attempts
from handbill.server.cards import model_card
from handbill.server.cohort import Cohort
from handbill.server.gate import Gate
from handbill.server.lease import Lease
from handbill.server.optimizer_state import load_state, save_state
from handbill.server.progress import Progress
from handbill.server.records import Round
from handbill.server.records import Stage as RoundStage
from handbill.server.recovery import recover
from handbill.server.registry import PUBLISHER_KEY, Registry
from handbill.server.runs import adapter_spec, new_run
from handbill.server.settings import ServerSettings
from handbill.server.tracking import Trackers
from handbill.server.updates import Updates, enough_reports, nothing_to_fold

log = logging.getLogger(__name__)


class Training:
    """One run over one transport."""

    def __init__(
        self,
        home: Path,
        transport: Transport,
        registry: Registry,
        settings: ServerSettings,
        *,
        model: LoraModel | None = None,
        what: Trains = "copy",
    ) -> None:
        """Read the roster and prepare the probe.

        Args:
            home: The server's folder.
            transport: How merchants are reached.
            registry: Where rounds are committed.
            settings: The operator's settings.
            model: A model to use instead of loading one, for simulations.
            what: Is trained.
        """
        settings = settings.of_run(what)
        self._home, self._transport, self._registry = home, transport, registry
        self._settings = settings
        self._key = load_or_create_key(home / PUBLISHER_KEY)
        self.base: BaseModel = resolve_base(settings.base)
        self.spec: ModelSpec = settings.interest.spec
        if what == "copy":
            self.spec = adapter_spec(settings, self.base)
        self.progress = Progress(home)
        self._gate = Gate(settings, self.base, self.spec, model=model)
        self._shapes = shapes_of(self.spec, self.base)
        self._updates = Updates(transport, settings, key=self._key, shapes=self._shapes)
        self._cohort = Cohort(transport, registry, settings)
        self._attempts = Attempts(
            registry,
            self._cohort,
            self.progress,
            repeats=settings.secure_aggregation.repeats,
            grouped=bool(settings.secure_aggregation.group_size),
        )
        self._trackers = Trackers(home, settings)

    def train(self, run: str, *, publish: bool, revive: bool = True) -> None:
        """Take a run to its end, from wherever it stands.

        Args:
            run: Its id; a new one starts a run with the settings of now.
            publish: Serve what was trained when it is done.
            revive: Whether one that ended goes on; else it may have been ended meanwhile.

        Raises:
            InputError: Sums are to be secure, and too few merchants are enrolled for one; or the
                key-encryption key cannot be used.
            MissingError: There is no key-encryption key.
            RoundError: A round could not be committed (:meth:`Attempts.take`).
            LeaseError: Another coordinator is at work or took over, or the run was ended.
        """
        with Lease(self._registry.database):
            self._cohort.check_size()
            if self._settings.recipe.personal_steps:
                # Before a merchant has paid for what could not be kept.
                self._registry.vault.check()
            recover(self._registry)
            self._train(run, publish=publish, revive=revive)

    def _train(self, run: str, *, publish: bool, revive: bool) -> None:
        self._registry.start_run(
            new_run(run, self.base, self.spec, self._settings.recipe, publish=publish),
            revive=revive,
        )
        recipe = self._settings.recipe
        stages: dict[RoundStage, int] = {"warmup": recipe.warmup_rounds, "global": recipe.rounds}
        for stage, rounds in stages.items():
            while True:
                done, parent, weights, state = self._last(run, stage)
                if done >= rounds:
                    break
                take = partial(
                    self._shared_round, parent=parent, weights=weights, state=state, rounds=rounds
                )
                self._attempts.take(run, done + 1, stage, take)
        if self._settings.recipe.personal_steps and not self._registry.last_committed(
            run, "personal"
        ):
            own = partial(self._personal_round, parent=parent, weights=weights)
            self._attempts.take(run, 1, "personal", own)
        if trains(self.spec) == "interest":
            self._deliver(run, parent, weights)
        elif publish:
            self._publish(run, parent)
        self._registry.end_run(run, "finished")
        self.progress.note("finished", run=run)

    def ping(self, run: str) -> RoundOutcome:
        """One round without training or budget: what a round costs by itself."""
        outcome = run_round(
            self._transport,
            self._plan(run, 1, 0, "ping", cohort=self._cohort.wait(run)),
            {},
            key=self._key,
            fold=nothing_to_fold,
        )
        self.progress.note("pinged", run=run, seconds=outcome.seconds, failures=outcome.failures)
        return outcome

    def _plan(
        self,
        run: str,
        number: int,
        attempt: int,
        stage: Stage,
        *,
        cohort: Mapping[str, Ed25519PublicKey],
        parent: str = "",
        ring: Ring | None = None,
    ) -> RoundPlan:
        shared = stage in {"warmup", "global"}  # what a shop trains for itself is not hurried
        return RoundPlan(
            run=run,
            round=number,
            attempt=attempt,
            stage=stage,
            parent=parent,
            base_digest=self.base.digest,
            spec=self.spec,
            recipe=self._settings.recipe,
            cohort=cohort,
            receipts=self._registry.receipts(),
            # A ping needs no lease: it would bring a newer head into the middle of a round.
            audit=None if stage == "ping" else self._registry.audit_head(),
            min_reports=self._settings.min_reports,
            enough_reports=enough_reports(self._settings, len(cohort), ring) if shared else 0,
            compression=self._settings.compression if shared and ring is None else "none",
            deadline_s=self._settings.deadline_s,
            ring=ring,
            on_roster=self._cohort.on_roster,
        )

    def _last(self, run: str, stage: RoundStage) -> tuple[int, str, Tensors, OptimizerState]:
        """Number, artifact, weights and optimiser state of a stage's last committed round.

        The private rounds begin with the weights of the warm-up, if there was one, and with an
        optimiser of their own: their gradients are of another size.
        """
        last = self._registry.last_committed(run, stage)
        if last is not None:
            state = load_state(self._home, last.aggregate, self._shapes)
            return last.number, last.aggregate, self._weights(last), state
        warm = self._registry.last_committed(run, "warmup")
        weights = untrained(self.spec, self.base) if warm is None else self._weights(warm)
        parent = "" if warm is None else warm.aggregate
        return 0, parent, weights, self._settings.optimizer.start(weights)

    def _weights(self, committed: Round) -> Tensors:
        folder = self._registry.store.path(committed.aggregate)
        return read_tensors(folder, self.spec, self.base)

    def _planned(self, attempt: Round, parent: str, *, ring: Ring | None = None) -> RoundPlan:
        """The plan of an attempt: for those it was opened for, whoever has come or gone since."""
        plan = self._plan(
            attempt.run,
            attempt.number,
            attempt.attempt,
            attempt.stage,
            cohort={merchant: self._cohort.roster.members[merchant] for merchant in attempt.cohort},
            parent=parent,
            ring=ring,
        )
        self.progress.note(
            "round", run=plan.run, round=plan.round, stage=plan.stage, cohort=sorted(plan.cohort)
        )
        return plan

    def _noting(self, plan: RoundPlan) -> Callable[[str, str], None]:
        def on_reply(merchant: str, error: str) -> None:
            self.progress.note("reply", round=plan.round, merchant=merchant, error=error)

        return on_reply

    def _shared_round(
        self, attempt: Round, parent: str, weights: Tensors, state: OptimizerState, rounds: int
    ) -> None:
        """A round of the adapter that everybody shares: on catalogues, or on shoppers' rows."""
        plan = self._planned(attempt, parent, ring=self._settings.secure_aggregation.ring)
        outcome, mean = self._updates.collect(
            plan,
            weights,
            roster=self._cohort.roster,
            on_reply=self._noting(plan),
            note=self._attempts.noting(attempt),
        )
        optimizer = self._settings.optimizer.at(attempt.number, of=rounds)
        moved, after = optimizer.step(weights, mean, state)
        old, new = self._gate.check(parent, weights, moved)
        if not parent:
            self.progress.note("probe", round=0, probe_loss=old)
        metrics = {"probe_loss": new}
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            card = self._card(attempt, privacy=outcome.privacy, sums=outcome.sums)
            write_model(folder, spec=self.spec, base=self.base, tensors=moved, card=card)
            manifest = self._registry.seal(
                folder,
                kind="global",
                base_name=self.base.name,
                base_digest=self.base.digest,
                parent=parent,
                run=attempt.run,
                round=attempt.number,
                metrics=metrics,
                privacy=outcome.privacy,
                sums=outcome.sums,
            )
            save_state(self._home, manifest.digest, after, parent=parent)
            self._commit(attempt, folder, parent, outcome, metrics)
        self._gate.passed(manifest.digest, new)

    def _personal_round(self, attempt: Round, parent: str, weights: Tensors) -> None:
        """Adapters of the shops' own, each from one report; all come in with the round's commit."""
        own: list[Path] = []

        def keep(report: Report, update: Tensors) -> None:
            check_tensors(update, self._shapes)
            moved: Tensors = {n: (weights[n] + update[n]).astype(np.float32) for n in weights}
            if not all(np.isfinite(value).all() for value in moved.values()):
                raise ProtocolError("adapter holds NaN or infinity")
            folder = Path(temporary) / report.merchant
            card = self._card(attempt, tenant=report.merchant, privacy=[report.privacy])
            lock = self._registry.locker(report.merchant)
            write_model(folder, spec=self.spec, base=self.base, tensors=moved, card=card, lock=lock)
            self._registry.seal(
                folder,
                kind="tenant",
                tenant=report.merchant,
                base_name=self.base.name,
                base_digest=self.base.digest,
                parent=parent,
                run=attempt.run,
                round=attempt.number,
                privacy=[report.privacy],
                prompts=report.prompts,
            )
            own.append(folder)

        plan = self._planned(attempt, parent)
        with tempfile.TemporaryDirectory() as temporary:
            outcome = run_round(
                self._transport,
                plan,
                weights,
                key=self._key,
                fold=keep,
                on_reply=self._noting(plan),
                note=self._attempts.noting(attempt),
            )
            self._commit(attempt, None, parent, outcome, {}, own=own)

    def _commit(
        self,
        attempt: Round,
        folder: Path | None,
        parent: str,
        outcome: RoundOutcome,
        metrics: dict[str, float],
        *,
        own: Sequence[Path] = (),
    ) -> None:
        committed = self._registry.commit_round(
            attempt,
            folder=folder,
            own=own,
            parent=parent,
            survivors=outcome.reporters,
            ledger_heads=outcome.ledger_heads,
            metrics=metrics,
            bytes_down=outcome.bytes_down,
            bytes_up=outcome.bytes_up,
            seconds=outcome.seconds,
        )
        self.progress.note(
            "committed",
            run=attempt.run,
            round=attempt.number,
            stage=attempt.stage,
            seconds=outcome.seconds,
            bytes_down=outcome.bytes_down,
            bytes_up=outcome.bytes_up,
            failures=outcome.failures,
            **metrics,
        )
        self._trackers.show(committed)

    def _card(self, attempt: Round, **facts: Any) -> str:
        return model_card(self.base, self.spec, attempt, **facts)

    def _deliver(self, run: str, parent: str, weights: Tensors) -> None:
        """Give every merchant that is there what the run made: it is used beside its own data.

        Nothing hangs on it: who misses it has the weights that its last round began with.
        """
        plan = self._plan(run, 1, 0, "deliver", cohort=self._cohort.wait(run), parent=parent)
        failures = self._updates.hand_out(plan, weights, on_reply=self._noting(plan))
        self.progress.note("delivered", run=run, digest=parent, failures=failures)

    def _publish(self, run: str, digest: str) -> None:
        self._registry.channels.publish("", digest)
        with self._registry.database.begin() as uow:
            members = {m.id for m in uow.merchants.all()}  # who was revoked is not published
            own = [
                a for a in uow.artifacts.all() if a.tenant in members and a.manifest["run"] == run
            ]
        for artifact in own:
            self._registry.channels.publish(artifact.tenant, artifact.digest)
        self.progress.note("published", run=run, digest=digest, own=[a.tenant for a in own])

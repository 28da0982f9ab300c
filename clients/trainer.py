"""The merchant's side of a round: check, reserve, train, sign.

Everything that leaves this module is either a signed report whose update carries the noise that
the ledger paid for, or a refusal that says nothing about any shopper.
"""

import json
import logging
import math
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from handbill.clients.budget import Budget
from handbill.clients.encoding import Encoder
from handbill.clients.feedback import FEEDBACK_FILE, NO_FEEDBACK, read_feedback
from handbill.clients.journal import Journal
from handbill.clients.merchant import (
    PROGRESS_FILE,
    SERVER_KEY,
    SIGNING_KEY,
    Merchant,
    Policy,
)
from handbill.clients.secure_sums import SecureSums
from handbill.clients.shoppers import ShopUsers, load_own_shop
from handbill.clients.studies import CopyStudy, InterestStudy, Study
from handbill.clients.variants import Variants
from handbill.clients.warmup import plain_step
from handbill.errors import InputError, NonFiniteUpdateError, PolicyError, ProtocolError
from handbill.federation.compression import compress
from handbill.federation.messages import (
    Instruction,
    Recipe,
    Report,
    Signed,
    detach,
    open_signed,
    sign,
)
from handbill.federation.secure_rounds import ROSTER, STATEMENT
from handbill.generator.adapters import AdapterSpec, Tensors
from handbill.generator.artifacts import load_or_create_key, load_public_key, write_durably
from handbill.generator.base_models import resolve_base
from handbill.generator.lora import LoraModel
from handbill.generator.model_specs import ModelSpec
from handbill.generator.prompts import EncodedExample, Example
from handbill.privacy.clipping import AdaptiveClipping
from handbill.privacy.faults import faultpoint
from handbill.privacy.noise import Noise, SecureNoise
from handbill.privacy.software import package_digest
from handbill.privacy.training import StepPlan, take_private_steps

log = logging.getLogger(__name__)

MOST_NOTES_BYTES: Final = 4_000_000  # some 20,000 rounds; beyond, the older half goes
CLOCK_SKEW_S: Final = 300.0  # that an operator's clock and a merchant's may differ


class Trainer:
    """One merchant's trainer: data, model, policy and ledger, kept warm between rounds."""

    def __init__(
        self, home: Path, *, noise: Noise | None = None, model: LoraModel | None = None
    ) -> None:
        """Open a merchant's home.

        Args:
            home: The merchant's folder.
            noise: Only tests give another source than :class:`SecureNoise`.
            model: A model to use instead of loading one: merchants simulated in one process
                share it.
        """
        self.home = home
        self.merchant, self.policy = Merchant.load(home), Policy.load(home)
        if self.merchant.threads:
            torch.set_num_threads(self.merchant.threads)
        self._key = load_or_create_key(home / SIGNING_KEY)
        self._server_key = load_public_key(home / SERVER_KEY)
        self._journal = Journal(home / "journal")
        self._budget = Budget(home, self.policy, self._journal)
        self._noise = SecureNoise() if noise is None else noise
        self._sums = SecureSums(
            home, self.merchant.id, self._key, self._server_key, floor=self.policy.min_cohort
        )
        self._answered = "", b""  # the last message of a secure sum and what was said to it
        self._base = resolve_base(self.merchant.base)
        self.policy.check_installed(software=package_digest(), base=self._base.digest)
        self._model = model
        self._interest: InterestStudy | None = None
        off = self.merchant.feedback == "off"
        shop = load_own_shop(self.merchant)
        self.scenarios = shop.info.scenarios
        self._encoder = Encoder(self.scenarios)
        feedback = NO_FEEDBACK if off else read_feedback(home / FEEDBACK_FILE, self.scenarios)
        self.users = ShopUsers.of(
            shop,
            held_out=self.policy.held_out,
            feedback=feedback,
            objective=self.merchant.feedback,
            replay=self.merchant.replay,
        )
        self._variants = Variants.of(self.merchant, self.users.catalogue)

    def handle(self, message: bytes) -> bytes:
        """Answer one instruction of the server with one signed report.

        Raises:
            ProtocolError: Not signed by the server, not for this merchant, a replay, expired or without an end,
                weights that cannot be trained from, or the operator's audit chain was changed.
            LedgerError: The server holds a receipt that this ledger does not know.
            PolicyError: The merchant's policy does not allow it.
            BudgetExhaustedError: It would pass the privacy limit; nothing was spent.
        """
        signed = Signed.from_bytes(message)
        asked, given = open_signed(signed, self._server_key, Instruction)
        if asked.merchant != self.merchant.id:
            raise ProtocolError("instruction is for another merchant")
        _check_time(asked.expires_at)
        weights = {name: value.copy() for name, value in given.items()}  # that torch may write to
        if asked.audit is not None:
            self._journal.keep_audit_head(asked.audit)
        if asked.receipt is not None:
            self._budget.check(asked.receipt)
        if asked.stage == "ping":
            return self._report(asked, {}, {})
        if asked.stage == "deliver":
            return self._receive(asked, weights, signed.digest)
        if asked.phase == "train":
            return self._take_part(asked, weights, signed.digest)
        if signed.digest != self._answered[0]:
            if asked.phase == "share":
                answer = self._take_part(asked, weights, signed.digest)
            else:
                said = self._sums.answer(asked, detach(weights, STATEMENT))
                answer = self._report(asked, said, {})
            self._answered = signed.digest, answer
        return self._answered[1]  # the same to the byte, should the same be asked again

    def _receive(self, asked: Instruction, weights: Tensors, digest: str) -> bytes:
        """Keep what a run made; nothing is trained and nothing spent."""
        self.policy.check_base(asked, base_digest=self._base.digest)
        _check_finite(weights)
        self._journal.admit(asked, digest)
        study = self.study(asked.spec)
        study.model.load(weights)  # refuses what is not of its form
        study.keep(asked, weights, None)
        return self._report(asked, {}, {})

    def _take_part(self, asked: Instruction, weights: Tensors, digest: str) -> bytes:
        """Train in a round, and give out the update or enter the sum that it will be in."""
        statement, roster = detach(weights, STATEMENT), detach(weights, ROSTER)
        rate = self.policy.check(asked, base_digest=self._base.digest)
        _check_finite(weights)
        self._journal.admit(asked, digest)
        content: Tensors = {}
        if asked.phase == "train" and roster:  # before anything is spent, as below
            self._sums.see_roster(roster)
        if asked.phase == "share":
            burn = partial(self._journal.burn, asked)
            content = self._sums.open(asked, weights, statement=statement, roster=roster, burn=burn)
        update = self._journal.recall(asked)
        if update is None:
            if asked.stage == "warmup":
                update = self._warm_up(asked, weights)
            else:
                update = self._train(asked, weights, rate)
            if asked.compressed:
                update = self._journal.round_off(asked.run, update)
            faultpoint("trainer.after_training")
            self._journal.keep(asked, update, prompts=self.scenarios.prompts)
            faultpoint("trainer.kept")
        privacy: dict[str, object] = {}
        if asked.stage != "warmup":
            spent = self._budget.statement(asked.recipe, rng=self._noise.description)
            privacy = {"merchant": self.merchant.id, **spent}
        if asked.phase == "share":
            self._sums.put(update)
        content = content or (compress(update) if asked.compressed else update)
        # Of the one round whose update the server knows to be this shop's alone.
        prompts = self._journal.learnt_with(asked) if asked.stage == "personal" else ""
        report = self._report(asked, content, privacy, prompts=prompts)
        faultpoint("trainer.before_send")
        return report

    def study(self, spec: ModelSpec) -> Study:
        """What a run of this form is learnt with; models and tables are loaded once."""
        if isinstance(spec, AdapterSpec):
            return CopyStudy(
                self.home,
                self.merchant,
                self.policy,
                model=self.model_for(spec),
                users=self.users,
                encode=self.encode,
                prompts=self.scenarios.prompts,
                variants=self._variants,
            )
        if self._interest is None or self._interest.spec != spec:
            self._interest = InterestStudy(self.home, self.merchant, self.policy, spec=spec)
        return self._interest

    def model_for(self, spec: AdapterSpec) -> LoraModel:
        """The model with the adapter that is trained, loaded once."""
        if self._model is None or self._model.spec != spec:
            merchant = self.merchant
            self._model = LoraModel(self._base, spec, device=merchant.device, dtype=merchant.dtype)
        return self._model

    def encode(self, rows: Sequence[Example], recipe: Recipe) -> list[EncodedExample]:
        """Token ids of the rows that are :meth:`fitting`, in the words of the shop's scenarios."""
        return self._encoder.encode(self._tokenizer, rows, recipe)

    def fitting(self, rows: Sequence[Example], recipe: Recipe) -> list[Example]:
        """The rows whose prompt has room, see :meth:`Encoder.fitting`."""
        return self._encoder.fitting(self._tokenizer, rows, recipe)

    @property
    def _tokenizer(self) -> Any:
        if self._model is None:
            raise InputError("no model is loaded yet")
        return self._model.tokenizer

    def _warm_up(self, asked: Instruction, weights: Tensors) -> Tensors:
        """One step on product descriptions, without noise; returns local minus global weights."""
        recipe = asked.recipe
        if not isinstance(asked.spec, AdapterSpec):
            raise ProtocolError("a model of interest has no warm-up: no catalogue can teach it")
        model = self.model_for(asked.spec)
        model.load(weights)
        rows = [
            row
            for row in self.users.catalogue
            if any(len(ids) > ids.n_prompt for ids in self.encode([row], recipe))
        ]
        if not rows:
            raise PolicyError(
                "this shop has no product descriptions to warm up on: name products.description "
                "in its shop.toml, or ask the operator for warmup_rounds = 0"
            )
        started = time.monotonic()
        order = self._noise.uniform(len(rows)).argsort()[: recipe.warmup_rows]
        chosen = [rows[int(i)] for i in order]
        if self._variants:
            chosen = [self._variants.drawn(row, _round_of(asked)) for row in chosen]
        update = plain_step(
            model,
            self.encode(chosen, recipe),
            learning_rate=recipe.learning_rate,
            batch_rows=recipe.batch_rows,
        )
        self._note_trained(asked, started)
        return update

    def _train(self, asked: Instruction, weights: Tensors, rate: float) -> Tensors:
        """Reserve budget, then train; returns local minus global weights."""
        recipe, personal = asked.recipe, asked.stage == "personal"
        quantile = recipe.clipping_quantile
        study = self.study(asked.spec)
        model = study.model
        model.load(weights)
        self._check_loss(study, recipe)
        self._note_held_out_loss(asked, study)
        users = study.users(recipe, label=_round_of(asked))
        faultpoint("trainer.before_reserve")
        # Reserve first: a crash may waste budget, never overspend.
        event = self._budget.reserve(asked, rate)
        started = time.monotonic()
        plan = StepPlan(
            event=event,
            clipping_norm=self._journal.clipping_norm(asked.run) or recipe.clipping_norm,
            expected_users=recipe.expected_users,
            rows_per_user=recipe.rows_per_user,
            batch_rows=recipe.batch_rows,
            learning_rate=recipe.personal_learning_rate if personal else recipe.learning_rate,
            optimizer=recipe.personal_optimizer if personal else "sgd",
            apart=self.merchant.dtype != "float32",
            adapt=AdaptiveClipping(quantile=quantile) if quantile else None,
        )
        stop = study.early_stop(recipe) if personal else None
        learner = study.learner(users, together=1 if plan.apart else recipe.batch_rows)
        go_on = stop.go_on if stop else lambda: True
        norm = take_private_steps(learner, users, plan, noise=self._noise, go_on=go_on)
        if stop:
            model.load(stop.best())
        if quantile:
            self._journal.keep_clipping_norm(asked.run, norm)
        self._note_trained(asked, started)
        trained = model.tensors()
        study.keep(asked, weights, trained if personal else None)
        return {n: (trained[n] - weights[n]).astype(np.float32) for n in trained}

    def _report(
        self,
        asked: Instruction,
        update: Tensors,
        privacy: dict[str, object],
        *,
        prompts: str = "",
    ) -> bytes:
        report = Report(
            merchant=self.merchant.id,
            run=asked.run,
            round=asked.round,
            attempt=asked.attempt,
            stage=asked.stage,
            parent=asked.parent,
            ledger_head=self._budget.head(),
            privacy=dict(privacy),
            phase=asked.phase,
            prompts=prompts,
        )
        return sign(report, update, self._key).to_bytes()

    def _check_loss(self, study: Study, recipe: Recipe) -> None:
        """Refuse weights with which every gradient would be dropped.

        Measured on invented rows: the server reads this refusal, and a loss on the shop's own rows
        would tell it something of them.
        """
        if not math.isfinite(study.model.held_out_loss(study.invented(recipe))):
            raise NonFiniteUpdateError("the weights that came give no finite loss; nothing spent")

    def _note_held_out_loss(self, asked: Instruction, study: Study) -> None:
        """Measure the weights that came on shoppers held out; the number stays here."""
        rows, batch = study.held_out(asked.recipe), asked.recipe.batch_rows
        self._note(
            {
                "event": "received",
                "stage": asked.stage,
                "round": asked.round,
                "held_out_loss": study.model.held_out_loss(rows, batch=batch),
            }
        )

    def _note_trained(self, asked: Instruction, started: float) -> None:
        self._note(
            {
                "event": "trained",
                "stage": asked.stage,
                "round": asked.round,
                "seconds": time.monotonic() - started,
            }
        )

    def _note(self, fact: dict[str, object]) -> None:
        path = self.home / PROGRESS_FILE
        if path.is_file() and path.stat().st_size > MOST_NOTES_BYTES:
            lines = path.read_bytes().splitlines(keepends=True)
            write_durably(path, b"".join(lines[len(lines) // 2 :]))  # the newer half
        with path.open("a") as file:
            file.write(json.dumps({"time": time.time(), **fact}) + "\n")


def _round_of(asked: Instruction) -> str:
    """A round's name; a round that is trained a second time has the same."""
    return f"{asked.run}/{asked.stage}/{asked.round}"


def _check_finite(weights: Tensors) -> None:
    """Refuse weights from which nothing can be learnt, and which would be kept."""
    if not all(v.dtype == np.float32 and np.isfinite(v).all() for v in weights.values()):
        raise NonFiniteUpdateError("the weights that came are not finite numbers; nothing spent")


def _check_time(expires_at: float) -> None:
    """Refuse an instruction of a round that is over: its update would be paid for and not used."""
    if not expires_at:
        raise ProtocolError("the instruction does not say when it expires; nothing was spent")
    now = time.time()
    late = now - expires_at
    if late > CLOCK_SKEW_S:
        raise ProtocolError(
            f"the instruction expired {late / 60:.0f} min before {datetime.fromtimestamp(now, UTC):%F %T} "
            f"UTC, which this merchant's clock says; nothing was spent. It was held back, or that "
            f"clock is so much ahead of the operator's, or more: set both clocks"
        )

"""The merchant's side of a round: check, reserve, train, sign.

Everything that leaves this module is either a signed report whose update carries the noise that
the ledger paid for, or a refusal that says nothing about any shopper.
"""

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from safetensors.numpy import save_file

from handbill.clients.journal import Journal
from handbill.clients.markets import find_shops
from handbill.clients.merchant import (
    LEDGER_FILE,
    PROGRESS_FILE,
    SERVER_KEY,
    SIGNING_KEY,
    Merchant,
    Policy,
)
from handbill.clients.shop import ShopData, load_shop, split_users
from handbill.errors import InputError, ProtocolError
from handbill.federation.messages import Instruction, Recipe, Report, Signed, open_signed, sign
from handbill.generator.adapters import AdapterSpec, Tensors
from handbill.generator.artifacts import load_or_create_key, load_public_key
from handbill.generator.base_models import resolve_base
from handbill.generator.lora import LoraModel
from handbill.generator.prompts import EncodedExample, Example, encode_example
from handbill.privacy.accounting import calibrate_noise
from handbill.privacy.events import PrivateSteps
from handbill.privacy.ledger import Ledger
from handbill.privacy.noise import Noise, SecureNoise
from handbill.privacy.statement import dp_statement
from handbill.privacy.training import StepPlan, take_private_steps

log = logging.getLogger(__name__)

SPLIT_LABEL: Final = "held-out/v1"
CURVE_ROWS: Final = 8  # held-out rows looked at in every round, for the shop's own curve


@dataclass(frozen=True, slots=True)
class ShopUsers:
    """A shop's rows by shopper, split once into shoppers to train on and shoppers held out."""

    train: tuple[tuple[Example, ...], ...]
    held_out: tuple[Example, ...]
    rejected: int

    @classmethod
    def of(cls, shop: ShopData, *, held_out: float) -> "ShopUsers":
        """Split a shop's shoppers; one row of each held-out shopper is measured on."""
        train, rest = split_users(shop, held_out_fraction=held_out, seed_label=SPLIT_LABEL)
        rows = tuple(rows[0] for _, rows in sorted(rest.by_user.items()))
        users = tuple(rows for _, rows in sorted(train.by_user.items()))
        return cls(users, rows, len(shop.rejects))


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
        self._noise = SecureNoise() if noise is None else noise
        self._base = resolve_base(self.merchant.base)
        self._model = model
        self._encoded: dict[Example, EncodedExample] = {}
        self.users = ShopUsers.of(_load(self.merchant), held_out=self.policy.held_out)

    def handle(self, message: bytes) -> bytes:
        """Answer one instruction of the server with one signed report.

        Raises:
            ProtocolError: Not signed by the server, not for this merchant, or a replay.
            PolicyError: The merchant's policy does not allow it.
            BudgetExhaustedError: It would pass the privacy limit; nothing was spent.
        """
        asked, weights = open_signed(Signed.from_bytes(message), self._server_key, Instruction)
        if asked.merchant != self.merchant.id:
            raise ProtocolError("instruction is for another merchant")
        if asked.stage == "ping":
            return self._report(asked, {}, {})
        rate = self.policy.check(asked, base_digest=self._base.digest)
        self._journal.admit(asked)
        model = self.model_for(asked.spec)
        model.load(weights)
        self._note_held_out_loss(asked, model)
        update = self._journal.recall(asked)
        if update is None:
            update = self._train(asked, model, weights, rate)
            self._journal.keep(asked, update)
        return self._report(asked, update, self._statement(asked))

    def model_for(self, spec: AdapterSpec) -> LoraModel:
        """The model with the adapter that is trained, loaded once."""
        if self._model is None or self._model.spec != spec:
            self._model = LoraModel(self._base, spec, device=self.merchant.device)
        return self._model

    def encode(self, rows: Sequence[Example], recipe: Recipe) -> list[EncodedExample]:
        """Token ids of rows, remembered."""
        if self._model is None:
            raise InputError("no model is loaded yet")
        for row in rows:
            if row not in self._encoded:
                self._encoded[row] = encode_example(
                    self._model.tokenizer,
                    row,
                    max_prompt_tokens=recipe.max_prompt_tokens,
                    max_copy_tokens=recipe.max_copy_tokens,
                )
        return [self._encoded[row] for row in rows]

    def _train(
        self, asked: Instruction, model: LoraModel, weights: Tensors, rate: float
    ) -> Tensors:
        """Reserve budget, then train; returns local minus global weights."""
        recipe, personal = asked.recipe, asked.stage == "personal"
        noise_multiplier = calibrate_noise(
            epsilon=self.policy.epsilon_per_run,
            delta=self.policy.delta,
            sampling_rate=rate,
            steps=recipe.private_steps,
        )
        event = PrivateSteps(
            noise_multiplier=noise_multiplier,
            sampling_rate=rate,
            steps=recipe.personal_steps if personal else recipe.local_steps,
        )
        users = [self.encode(rows, recipe) for rows in self.users.train]
        with self._ledger() as ledger:
            # Reserve first: a crash may waste budget, never overspend.
            paid = ledger.reserve(
                event,
                run=asked.run,
                round=asked.round,
                stage=asked.stage,
                attempt=str(asked.attempt),
            )
        self._journal.keep_head(paid.head)
        started = time.monotonic()
        plan = StepPlan(
            event=event,
            clipping_norm=recipe.clipping_norm,
            expected_users=recipe.expected_users,
            rows_per_user=recipe.rows_per_user,
            batch_rows=recipe.batch_rows,
            learning_rate=recipe.personal_learning_rate if personal else recipe.learning_rate,
            optimizer="adam" if personal else "sgd",
        )
        take_private_steps(model, users, plan, noise=self._noise)
        self._note(
            {
                "event": "trained",
                "stage": asked.stage,
                "round": asked.round,
                "seconds": time.monotonic() - started,
            }
        )
        trained = model.tensors()
        self._keep_adapters(asked, weights, trained if personal else None)
        return {n: (trained[n] - weights[n]).astype(np.float32) for n in trained}

    def _report(self, asked: Instruction, update: Tensors, privacy: dict[str, object]) -> bytes:
        with self._ledger() as ledger:
            head = ledger.head()
        report = Report(
            merchant=self.merchant.id,
            run=asked.run,
            round=asked.round,
            attempt=asked.attempt,
            stage=asked.stage,
            parent=asked.parent,
            ledger_head=head,
            privacy=dict(privacy),
        )
        return sign(report, update, self._key).to_bytes()

    def _statement(self, asked: Instruction) -> dict[str, object]:
        with self._ledger() as ledger:
            rows = ledger.verify()
            rounds = len({row.slot[:3] for row in rows if row.kind == "reserve"})
            statement = dp_statement(
                ledger.events(),
                delta=self.policy.delta,
                rounds=rounds,
                clipping_norm=asked.recipe.clipping_norm,
                rng=self._noise.description,
            )
        return {"merchant": self.merchant.id, **statement.to_dict()}

    def _ledger(self) -> Ledger:
        return Ledger(
            self.home / LEDGER_FILE,
            epsilon_limit=self.policy.epsilon_limit,
            delta=self.policy.delta,
            known_head=self._journal.head(),
        )

    def _note_held_out_loss(self, asked: Instruction, model: LoraModel) -> None:
        """Measure the weights that came on shoppers held out; the number stays here."""
        rows = self.encode(self.users.held_out[:CURVE_ROWS], asked.recipe)
        self._note(
            {
                "event": "received",
                "stage": asked.stage,
                "round": asked.round,
                "held_out_loss": model.held_out_loss(rows, batch=asked.recipe.batch_rows),
            }
        )

    def _note(self, fact: dict[str, object]) -> None:
        with (self.home / PROGRESS_FILE).open("a") as file:
            file.write(json.dumps({"time": time.time(), **fact}) + "\n")

    def _keep_adapters(self, asked: Instruction, received: Tensors, own: Tensors | None) -> None:
        """Keep the last global weights and the shop's own, to compare and to evaluate."""
        folder = self.home / "adapters"
        folder.mkdir(exist_ok=True)
        save_file(received, folder / "global.safetensors")
        if own is not None:
            save_file(own, folder / "personal.safetensors")
        about = {"run": asked.run, "spec": asked.spec.to_dict(), "recipe": asdict(asked.recipe)}
        (folder / "run.json").write_text(json.dumps(about))


def _load(merchant: Merchant) -> ShopData:
    describe = Path(merchant.describe) if merchant.describe else None
    for source in find_shops(Path(merchant.data), describe=describe):
        if source.info.id == merchant.id:
            return load_shop(source)
    raise InputError(f"{merchant.data}: holds no shop {merchant.id!r}")

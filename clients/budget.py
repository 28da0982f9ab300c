"""What a shop may spend: its ledger, kept to its policy and to what the server knows of it."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from handbill.clients.journal import Journal
from handbill.clients.merchant import LEDGER_FILE, POLICY_FILE, Policy
from handbill.errors import BudgetExhaustedError, LedgerError, PolicyError
from handbill.federation.messages import Instruction, PaidStage, Receipt, Recipe
from handbill.privacy.accounting import calibrate_noise
from handbill.privacy.events import PrivateSteps
from handbill.privacy.ledger import Ledger
from handbill.privacy.statement import dp_statement


class Budget:
    """One merchant's privacy budget. The ledger is open only while it is looked at."""

    def __init__(self, home: Path, policy: Policy, journal: Journal) -> None:
        """Use the ledger in ``home``."""
        self._path, self._policy, self._journal = home / LEDGER_FILE, policy, journal

    def reserve(self, asked: Instruction, rate: float) -> PrivateSteps:
        """Pay for one round's private steps, for good; returns what may now be done.

        Args:
            asked: The round.
            rate: Sampling rate of a step.

        Raises:
            PolicyError: No amount of noise keeps such a run within ``epsilon_per_run``, or the day's
                rounds are used up.
            BudgetExhaustedError: It does not fit in what is left, nor, at the start of a run,
                does all that is planned and may have to be repeated. Nothing was spent.
            LedgerError: The attempt was paid for before, or this is not the newest ledger.
        """
        recipe = asked.recipe
        stage: PaidStage = "personal" if asked.stage == "personal" else "global"
        spare = self._policy.spare_rounds * recipe.local_steps
        event = PrivateSteps(
            noise_multiplier=self._noise_multiplier(asked, rate, recipe.private_steps + spare),
            sampling_rate=rate,
            steps=recipe.steps_in(stage),
        )
        with self._ledger() as ledger:
            self._check_pace(ledger)
            paid = ledger.reserve(
                event,
                run=asked.run,
                round=asked.round,
                stage=stage,
                attempt=str(asked.attempt),
                planned=replace(event, steps=recipe.steps_left(stage, asked.round) + spare),
            )
        self._journal.keep_head(paid.head)
        return event

    def check(self, receipt: Receipt) -> None:
        """Refuse a ledger that lacks what the server has committed of it; remember the receipt.

        The merchant's own journal knows the last head too, but a disk restored as a whole brings
        back an older ledger with the journal that fits it. The server remembers.

        Raises:
            LedgerError: It is not there. Nothing was spent.
        """
        if receipt.head == self._policy.lost_ledger_head:
            return
        held = False
        if self._path.is_file():
            with self._ledger() as ledger:
                held = ledger.find(receipt.head) is not None
        if not held:
            raise LedgerError(
                f"lacks the head {receipt.head} that the server committed after "
                f"{receipt.stage} round {receipt.round} of run {receipt.run}: an older ledger was "
                f"brought back, or the receipt is untrue. Nothing was spent. Bring back the newest "
                f"copy; if it is lost for good, see lost_ledger_head in docs/runbook.md",
                path=self._path,
            )
        self._journal.keep_receipt(receipt)

    def statement(self, recipe: Recipe, *, rng: str) -> dict[str, Any]:
        """Return the DP statement over everything the ledger holds, fit for JSON."""
        with self._ledger() as ledger:
            rows = ledger.verify()
            statement = dp_statement(
                ledger.events(),
                delta=self._policy.delta,
                rounds=len({row.slot[:3] for row in rows if row.kind == "reserve"}),
                clipping_norm=recipe.clipping_norm,
                rng=rng,
            )
        return statement.to_dict()

    def head(self) -> str:
        """Return the hash of the ledger's last row, which the server will receipt."""
        with self._ledger() as ledger:
            return ledger.head()

    def _check_pace(self, ledger: Ledger) -> None:
        """Refuse more rounds a day than the policy allows."""
        day_ago = datetime.now(UTC) - timedelta(days=1)
        times = [row.time for row in ledger.verify() if row.kind == "reserve"]
        recent = sum(datetime.fromisoformat(time) > day_ago for time in times)
        if recent >= self._policy.max_rounds_per_day:
            raise PolicyError(
                f"{recent} rounds were paid for within a day; the policy allows "
                f"max_rounds_per_day={self._policy.max_rounds_per_day}; nothing was spent"
            )

    def _noise_multiplier(self, asked: Instruction, rate: float, steps: int) -> float:
        """The noise with which so many steps cost what the policy gives such a run."""
        policy, setting = self._policy, self._policy.setting_for(asked)
        epsilon = getattr(policy, setting)
        try:
            return calibrate_noise(
                epsilon=epsilon,
                delta=policy.delta,
                sampling_rate=rate,
                steps=steps,
            )
        except BudgetExhaustedError as error:
            raise PolicyError(
                f"{POLICY_FILE}: {setting}={epsilon:g} cannot be met by {steps} steps with any "
                f"amount of noise; nothing was spent. Raise it"
            ) from error

    def _ledger(self) -> Ledger:
        head = self._journal.head()
        return Ledger(
            self._path,
            epsilon_limit=self._policy.epsilon_limit,
            delta=self._policy.delta,
            known_head="" if head == self._policy.lost_ledger_head else head,
        )

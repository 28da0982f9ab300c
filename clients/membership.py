"""Can somebody tell from a shop's adapters who was trained on? The shop tries it itself.

The attack: of each shopper one row, and how much lower the adapter's loss on it is than the base
model's. Shoppers trained on and shoppers held out were parted by a keyed hash, as by a coin each,
so :func:`~handbill.privacy.audit.one_run_bound` applies. The figures come from private losses:
they stay on this machine.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from handbill.clients.evaluation import ARMS, load_arms
from handbill.clients.merchant import LEDGER_FILE
from handbill.clients.trainer import Trainer
from handbill.errors import InputError
from handbill.generator.adapters import Tensors
from handbill.generator.lora import LoraModel
from handbill.generator.prompts import EncodedExample, Example
from handbill.privacy.audit import Membership, membership
from handbill.privacy.ledger import Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class ShopAudit:
    """What the attack shows for each adapter, and what the shop's ledger claims."""

    shop: str
    claimed: float
    delta: float
    confidence: float
    adapters: dict[str, Membership]

    @property
    def refuted(self) -> bool:
        """Whether an adapter gives away more than the ledger says."""
        return any(found.epsilon > self.claimed for found in self.adapters.values())

    def in_words(self) -> str:
        """What the figures mean, in sentences."""
        bound = max(found.epsilon for found in self.adapters.values())
        claim = f"the ledger's epsilon {self.claimed:.2f} (delta {self.delta:.1e})"
        if self.refuted:
            return (
                f"BROKEN: the attack shows epsilon of at least {bound:.2f}, above {claim}. A sound "
                f"build is accused so with chance at most {1 - self.confidence:.2g}. Stop training."
            )
        most = max(found.most for found in self.adapters.values())
        return (
            f"The attack shows epsilon of at least {bound:.2f}; {claim} stands. With so few "
            f"shoppers no attack could show more than {most:.2f}. AUC 0.5 is guessing. These "
            "figures come from private losses: keep them on this machine."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"refuted": self.refuted}


def audit_shop(
    trainer: Trainer,
    *,
    shoppers: int,
    confidence: float = 0.95,
    on_step: Callable[[str, int, int], None] = lambda *_: None,
) -> ShopAudit:
    """Try the attack on a shop's last global adapter and on its own.

    Args:
        trainer: Of a merchant that has taken part in a run.
        shoppers: At most so many are attacked, half of them held out.
        confidence: Of each bound; the error is shared by the adapters.
        on_step: Called with an adapter's name, losses measured so far and losses in all.

    Raises:
        MissingError: The merchant has not finished a run yet.
    """
    model, recipe, arms = load_arms(trainer)
    policy = trainer.policy
    rows, inside = _candidates(trainer, shoppers)
    with_room = [number for number, row in enumerate(rows) if trainer.fitting([row], recipe)]
    inside, encoded = inside[with_room], trainer.encode(rows, recipe)
    losses = {}
    total = len(arms) * len(encoded)
    for number, (arm, tensors) in enumerate(arms.items()):

        def on_rows(done: int, arm: str = arm, before: int = number * len(encoded)) -> None:
            on_step(arm, before + done, total)

        losses[arm] = row_losses(model, tensors, encoded, batch=recipe.batch_rows, on_rows=on_rows)
    with Ledger(
        trainer.home / LEDGER_FILE,
        epsilon_limit=policy.epsilon_limit,
        delta=policy.delta,
        read_only=True,
    ) as ledger:
        claimed = ledger.spent()
    attacked = [arm for arm in ARMS[1:] if arm in losses]
    error = (1 - confidence) / len(attacked)
    return ShopAudit(
        shop=trainer.merchant.id,
        claimed=claimed,
        delta=policy.delta,
        confidence=confidence,
        adapters={
            arm: membership(
                losses["base"] - losses[arm], inside, delta=policy.delta, confidence=1 - error
            )
            for arm in attacked
        },
    )


@torch.inference_mode()
def row_losses(
    model: LoraModel,
    tensors: Tensors,
    rows: Sequence[EncodedExample],
    *,
    batch: int,
    on_rows: Callable[[int], None] = lambda _: None,
) -> NDArray[np.float64]:
    """Loss of each row under an adapter, in nats a token, shape (rows,)."""
    model.load(tensors)
    losses = np.empty(len(rows))
    order = sorted(range(len(rows)), key=lambda n: len(rows[n]))  # little is lost on padding
    for begin in range(0, len(order), batch):
        some = order[begin : begin + batch]
        losses[some] = model.row_losses([rows[n] for n in some]).double().cpu().numpy()
        on_rows(begin + len(some))
    return losses


def _candidates(trainer: Trainer, most: int) -> tuple[list[Example], NDArray[np.bool_]]:
    """One row of each shopper who is attacked, and who of them was trained on.

    Each shopper was held out by a coin that falls so with chance ``policy.held_out``. Thinning the
    more frequent side by a coin of its own makes it a fair coin for those who are left.
    """
    draws = np.random.default_rng()  # seeded by the operating system
    share = trainer.policy.held_out
    sides = [
        ([rows[0] for rows in trainer.users.train], min(1.0, share / (1 - share))),
        (list(trainer.users.held_out), min(1.0, (1 - share) / share)),
    ]
    kept = [
        (row, side == 0)
        for side, (rows, chance) in enumerate(sides)
        for row in rows
        if draws.random() < chance
    ]
    draws.shuffle(kept)
    kept = kept[:most]
    inside = np.array([member for _, member in kept], dtype=np.bool_)
    if len(kept) < 2 or inside.all() or not inside.any():
        raise InputError(
            f"{trainer.merchant.id}: too few shoppers were held out to tell anything; it takes "
            "some dozens"
        )
    return [row for row, _ in kept], inside

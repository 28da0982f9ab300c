"""Membership inference on a small language model: trained with privacy, and without.

``attack`` writes an invented shop, trains an adapter on half of its shoppers and tries to tell from
it who they were, by how far each shopper's loss fell below the base model's.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch

from handbill.clients.markets import find_shops
from handbill.clients.membership import row_losses
from handbill.clients.shop import load_shop
from handbill.clients.shoppers import ShopUsers
from handbill.generator.adapters import AdapterSpec
from handbill.generator.base_models import make_tiny_base, resolve_base
from handbill.generator.lora import LoraModel
from handbill.generator.prompts import encode_example
from handbill.privacy.accounting import calibrate_noise
from handbill.privacy.accounting import epsilon as epsilon_of
from handbill.privacy.audit import Membership, membership
from handbill.privacy.events import PrivateSteps
from handbill.privacy.noise import SecureNoise
from handbill.privacy.training import StepPlan, take_private_steps
from handbill.simulations.grammar import SHOPS, Draws, read_vocabulary
from handbill.simulations.market import write_shop

DELTA: Final = 1e-5
RATE: Final = 0.5
LEARNING_RATE: Final = 0.01
BATCH: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """What the attack found, what was claimed (infinity without privacy), and what was learnt.

    ``loss`` is the mean over shoppers held out, in nats a token, before and after.
    """

    found: Membership
    claimed: float
    loss: tuple[float, float]


def attack(
    folder: Path,
    *,
    shoppers: int = 100,
    steps: int = 100,
    epsilon: float | None,
    confidence: float = 0.95,
) -> Attack:
    """Train on half of ``shoppers``, at ``epsilon`` or without privacy, and attack."""
    torch.set_num_threads(1)
    base = resolve_base(str(make_tiny_base(folder / "base", layers=2, hidden=64)))
    words = read_vocabulary(SHOPS[0]) | {"id": "shop", "name": "shop"}
    write_shop(folder / "shop", words, Draws(1, "shop"), shoppers)
    (source,) = find_shops(folder / "shop")
    users = ShopUsers.of(load_shop(source), held_out=0.5)
    model = LoraModel(base, AdapterSpec(rank=16, alpha=32.0, layers=(0, 1)))
    members = [encode_example(model.tokenizer, rows[0]) for rows in users.train]
    others = [encode_example(model.tokenizer, row) for row in users.held_out]
    start = model.tensors()
    claimed = float("inf")
    if epsilon is None:
        optimizer = torch.optim.Adam(list(model.trained.values()), lr=LEARNING_RATE)
        for _ in range(steps):
            optimizer.zero_grad()
            torch.autograd.backward(model.row_losses(members).mean())
            optimizer.step()
    else:
        sigma = calibrate_noise(epsilon=epsilon, delta=DELTA, sampling_rate=RATE, steps=steps)
        event = PrivateSteps(noise_multiplier=sigma, sampling_rate=RATE, steps=steps)
        claimed = epsilon_of([event], delta=DELTA)
        plan = StepPlan(
            event=event,
            clipping_norm=0.1,
            expected_users=RATE * len(members),
            rows_per_user=1,
            batch_rows=BATCH,
            learning_rate=LEARNING_RATE,
            optimizer="adam",
        )
        take_private_steps(model, [[row] for row in members], plan, noise=SecureNoise())
    rows = members + others
    after = row_losses(model, model.tensors(), rows, batch=BATCH)
    before = row_losses(model, start, rows, batch=BATCH)
    inside = np.arange(len(rows)) < len(members)
    held_out = slice(len(members), None)
    return Attack(
        found=membership(before - after, inside, delta=DELTA, confidence=confidence),
        claimed=claimed,
        loss=(float(before[held_out].mean()), float(after[held_out].mean())),
    )

"""The demo's recipe against stock Opacus hooks: the same shoppers, the same budget, equal loss.

The stock way: LoRA on all linear layers of all transformer layers, A and B trained, batches in the
order they were sampled and padded to their longest row, whole logits, per-row gradients by Opacus'
hooks, which then clip each row (each shopper gives one row, so that both bound the same thing).
"""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from dp_training_peers import load, trained
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor
from torch.nn import functional

from handbill.federation.messages import Recipe
from handbill.generator.adapters import AdapterSpec, top_layers
from handbill.generator.base_models import resolve_base
from handbill.generator.lora import LoraModel
from handbill.generator.prompts import EncodedExample
from handbill.privacy.accounting import calibrate_noise
from handbill.privacy.events import PrivateSteps
from handbill.privacy.noise import SecureNoise
from handbill.privacy.sampling import poisson_sample
from handbill.privacy.training import StepPlan, take_private_steps
from handbill.server.settings import AdapterSettings
from handbill.simulations.arms import Shop, load_shops

STEPS, EXPECTED, SEEDS = 6, 20, 1
STOCK_RATES, OUR_RATES = (4e-3, 1e-2), (2e-2, 3e-2)
HELD_OUT = 48


class StockModel:
    """Stock PEFT and Opacus hooks."""

    def __init__(self) -> None:
        self.model: Any = load()
        self.start = [p.detach().clone() for p in trained(self.model)]

    def losses(self, model: Any, rows: Sequence[EncodedExample]) -> Tensor:
        """Mean loss of each row's copy, from whole padded logits."""
        width = max(len(row.ids) for row in rows)
        ids = torch.tensor([[*row.ids, *[0] * (width - len(row.ids))] for row in rows])
        labels = torch.full_like(ids, -100)
        for labelled, row in zip(labels, rows, strict=True):
            labelled[row.n_prompt : len(row.ids)] = torch.tensor(row.ids[row.n_prompt :])
        logits = model(input_ids=ids).logits[:, :-1].transpose(1, 2)
        each = functional.cross_entropy(logits, labels[:, 1:], reduction="none")
        return each.sum(1) / (labels[:, 1:] >= 0).sum(1)

    def train(self, shop: Shop, event: PrivateSteps, rate: float) -> tuple[float, int]:
        """Train from the start; seconds and tokens."""
        for parameter, value in zip(trained(self.model), self.start, strict=True):
            parameter.data.copy_(value * (value.shape[0] == 8))  # B starts at zero, A as drawn
        wrapped = GradSampleModule(self.model, loss_reduction="sum", strict=False)
        plain = torch.optim.Adam(trained(self.model), lr=rate, betas=(0.9, 0.99))
        optimizer = DPOptimizer(
            plain,
            noise_multiplier=event.noise_multiplier,
            max_grad_norm=0.5,
            expected_batch_size=EXPECTED,
            loss_reduction="sum",
        )
        noise, tokens, started = SecureNoise(), 0, time.perf_counter()
        for _ in range(event.steps):
            users = poisson_sample(len(shop.users), event.sampling_rate, noise)
            rows = [shop.users[int(user)][0] for user in users]
            tokens += sum(len(row.ids) for row in rows)
            batches = [rows[i : i + 8] for i in range(0, len(rows), 8)]
            for n, batch in enumerate(batches):
                self.losses(wrapped, batch).sum().backward()
                if n < len(batches) - 1:
                    optimizer.signal_skip_step(do_skip=True)
                    optimizer.step()
                    optimizer.zero_grad()
            optimizer.step()
            optimizer.zero_grad()
        seconds = time.perf_counter() - started
        wrapped.to_standard_module()
        return seconds, tokens

    @torch.inference_mode()
    def held_out_loss(self, rows: Sequence[EncodedExample]) -> float:
        """As the product measures it: nats a token over all rows' copy."""
        counts = torch.tensor([len(row.ids) - row.n_prompt for row in rows])
        losses = torch.cat(
            [self.losses(self.model, rows[i : i + 8]) for i in range(0, len(rows), 8)]
        )
        return float((losses * counts).sum() / counts.sum())


def ours(model: LoraModel, shop: Shop, event: PrivateSteps, rate: float) -> tuple[float, int]:
    """The product's private steps on the same kind of sample; seconds and tokens."""
    tokens = 0

    class Counting:
        def __init__(self) -> None:
            self.model, self.trained = model.model, model.trained

        def row_losses(self, rows: Sequence[EncodedExample]) -> Tensor:
            nonlocal tokens
            tokens += sum(len(row.ids) for row in rows)
            return model.row_losses(rows)

    model.load({name: value * 0 for name, value in model.tensors().items()})
    plan = StepPlan(
        event=event,
        clipping_norm=0.5,
        expected_users=EXPECTED,
        rows_per_user=1,
        batch_rows=8,
        learning_rate=rate,
        optimizer="adam",
    )
    started = time.perf_counter()
    take_private_steps(Counting(), [rows[:1] for rows in shop.users], plan, noise=SecureNoise())
    return time.perf_counter() - started, tokens


def recipe_against_hooks(data: Path) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Tokens a second of both, and the held-out loss each reaches at epsilon 8."""
    base = resolve_base("smollm2-135m")
    layers = AdapterSettings().layers
    model = LoraModel(base, AdapterSpec(layers=top_layers(base, layers)))
    shop = load_shops(data, model, Recipe(), held_out=HELD_OUT)[0]
    rate = EXPECTED / shop.policy.users
    sigma = calibrate_noise(epsilon=8.0, delta=shop.policy.delta, sampling_rate=rate, steps=STEPS)
    event = PrivateSteps(noise_multiplier=sigma, sampling_rate=rate, steps=STEPS)
    stock = StockModel()
    rows: list[dict[str, Any]] = []
    for seed in range(SEEDS):
        for stock_rate, our_rate in zip(STOCK_RATES, OUR_RATES, strict=True):
            for arm, trainer, learning_rate in (
                ("hooks", stock, stock_rate),
                ("recipe", None, our_rate),
            ):
                if trainer is not None:
                    seconds, tokens = trainer.train(shop, event, learning_rate)
                    loss = trainer.held_out_loss(shop.held_out)
                else:
                    seconds, tokens = ours(model, shop, event, learning_rate)
                    loss = model.held_out_loss(shop.held_out)
                row = {
                    "mode": f"recipe: {arm}",
                    "learning_rate": learning_rate,
                    "run": seed,
                    "tokens_per_s": round(tokens / seconds, 1),
                    "held_out_loss": round(loss, 3),
                }
                rows.append(row)
                print(row, flush=True)
    speed = {
        arm: [row["tokens_per_s"] for row in rows if row["mode"] == f"recipe: {arm}"]
        for arm in ("hooks", "recipe")
    }
    ratios = [b / a for a, b in zip(speed["hooks"], speed["recipe"], strict=True)]
    metrics = {
        "recipe_speedup_vs_hooks": round(statistics.median(ratios), 3),
        "recipe_speedup_vs_hooks_least": round(min(ratios), 3),
        "recipe_speedup_vs_hooks_most": round(max(ratios), 3),
        "recipe_tokens_per_s": statistics.median(speed["recipe"]),
        "hooks_tokens_per_s": statistics.median(speed["hooks"]),
        "recipe_loss": _best(rows, "recipe"),
        "hooks_loss": _best(rows, "hooks"),
    }
    return metrics, rows


def _best(rows: list[dict[str, Any]], arm: str) -> float:
    """The mean loss at the arm's better learning rate."""
    mine = [row for row in rows if row["mode"] == f"recipe: {arm}"]
    rates = {row["learning_rate"] for row in mine}
    return round(
        min(
            statistics.mean(row["held_out_loss"] for row in mine if row["learning_rate"] == rate)
            for rate in rates
        ),
        4,
    )

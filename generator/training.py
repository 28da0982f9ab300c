"""One way to train whatever writes copy: batches of like length, AdamW, checks on held-out copy, resuming.

Everything random is drawn anew from the seed and the step, so that a training that was cut off and taken up again
ends with the weights of one that was not. What is on disk is safetensors and JSON.
"""

import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from handbill.errors import InputError

R = TypeVar("R")
R_contra = TypeVar("R_contra", contravariant=True)
STATE: Final = "training.safetensors"
BEST: Final = "best.safetensors"
_MOMENTS: Final = ("exp_avg", "exp_avg_sq")
_POOL: Final = 40  # batches that are sorted by length together
Say = Callable[[str], None]


class Learner(Protocol[R_contra]):
    """What can be trained on rows of some kind."""

    module: nn.Module

    def length(self, row: R_contra) -> int:
        """Tokens of a row."""

    def loss(self, rows: Sequence[R_contra], progress: float) -> Tensor:
        """What is made small; ``progress`` goes from 0 to 1 over the training."""

    def held_out_loss(self, rows: Sequence[R_contra]) -> tuple[float, int]:
        """Sum of the loss in nats, and the tokens it is of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How long and how fast.

    Attributes:
        epochs: At most so many times over the rows.
        batch_rows: Rows of a step.
        learning_rate: The highest; it rises for a twentieth of the steps and then falls to a tenth.
        checks: Times an epoch that held-out loss is measured.
        patience: Stop after so many checks in a row without a better one; 0 never stops early and
            keeps the last weights instead of the best.
        seed: Of everything random.
    """

    epochs: int = 10
    batch_rows: int = 16
    learning_rate: float = 2e-3
    checks: int = 2
    patience: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_rows", "checks"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 < self.learning_rate < 1:
            raise InputError(f"learning_rate={self.learning_rate} not in (0, 1)")


@dataclass(slots=True)
class Progress:
    """Where a training is.

    Attributes:
        step: Steps taken.
        best: Lowest held-out loss so far, nats a token.
        worse: Checks since then.
        history: Step, training loss and held-out loss at each check.
    """

    step: int = 0
    best: float = math.inf
    worse: int = 0
    history: list[tuple[int, float, float]] = field(default_factory=list)


def train(
    learner: Learner[R],
    rows: Sequence[R],
    held_out: Sequence[R],
    schedule: Schedule,
    *,
    folder: Path,
    data: str = "",
    minutes: float = math.inf,
    say: Say = lambda _: None,
) -> Progress:
    """Train, or go on with what the folder holds; the module ends with the weights that are kept.

    Args:
        learner: What is trained; changed in place.
        rows: To train on.
        held_out: To stop by.
        schedule: How long and how fast.
        folder: Of the state between two checks, made if it is not there.
        data: Names the model and the data: a state of another name is not gone on with.
        minutes: End when so many have passed and there was a check, with what is best by then.
        say: Told at each check.

    Raises:
        InputError: The folder holds the state of another training.
    """
    folder.mkdir(parents=True, exist_ok=True)
    module = learner.module
    trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=schedule.learning_rate, weight_decay=0.01)
    for parameter in trained.values():  # also those that no loss reaches at first
        parameter.grad = torch.zeros_like(parameter)
    about = {**asdict(schedule), "rows": len(rows), "held_out": len(held_out), "data": data}
    kept: dict[str, Tensor] = {**trained, **dict(module.named_buffers())}
    progress = _resume(folder / STATE, kept, optimizer, about)
    per_epoch = math.ceil(len(rows) / schedule.batch_rows)
    total = per_epoch * schedule.epochs
    every = max(1, per_epoch // schedule.checks)
    seen, told, until = 0.0, 0, time.monotonic() + 60 * minutes
    for batch in _batches(learner, rows, schedule, start=progress.step):
        if _stopped(progress, schedule) or (progress.history and time.monotonic() > until):
            break
        share = progress.step / total
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate * _warm_cosine(share)
        module.train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(schedule.seed * 1_000_003 + progress.step)
            loss = learner.loss(batch, share)
        optimizer.zero_grad(set_to_none=False)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        seen, told = seen + float(loss.detach()), told + 1
        progress.step += 1
        if progress.step % every == 0 or progress.step == total:
            loss_now = held_out_loss(learner, held_out)
            progress.history.append((progress.step, seen / told, loss_now))
            if loss_now < progress.best:
                progress.best, progress.worse = loss_now, 0
                _write(kept, folder / BEST, {})
            else:
                progress.worse += 1
            _save(folder / STATE, kept, optimizer, progress, about)
            say(
                f"step {progress.step:,} of {total:,}: loss {seen / told:.3f}, "
                f"held out {loss_now:.3f}, best {progress.best:.3f}"
            )
            seen, told = 0.0, 0
    if schedule.patience:
        _load(folder / BEST, kept)
    module.eval()
    return progress


def _stopped(progress: Progress, schedule: Schedule) -> bool:
    return 0 < schedule.patience <= progress.worse


def _warm_cosine(share: float) -> float:
    """Rises over the first twentieth, then falls along a cosine to a tenth."""
    if share < 0.05:
        return max(share, 0.001) / 0.05
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (share - 0.05) / 0.95))


def _batches(
    learner: Learner[R], rows: Sequence[R], schedule: Schedule, *, start: int
) -> Iterator[list[R]]:
    """Batches of rows of like length from a step on; an epoch's order follows from seed and epoch."""
    size = schedule.batch_rows
    per_epoch = math.ceil(len(rows) / size)
    for epoch in range(start // per_epoch, schedule.epochs):
        draws = random.Random(f"{schedule.seed}/{epoch}")  # noqa: S311 - an order, no secret
        order = list(range(len(rows)))
        draws.shuffle(order)
        batches: list[list[int]] = []
        for at in range(0, len(order), size * _POOL):
            pool = sorted(order[at : at + size * _POOL], key=lambda i: learner.length(rows[i]))
            batches += [pool[i : i + size] for i in range(0, len(pool), size)]
        draws.shuffle(batches)
        for batch in batches[max(0, start - epoch * per_epoch) :]:
            yield [rows[i] for i in batch]


def held_out_loss(learner: Learner[R], held_out: Sequence[R]) -> float:
    """Nats a token."""
    learner.module.eval()
    nats, tokens = 0.0, 0
    ordered = sorted(held_out, key=learner.length)
    with torch.no_grad():
        for at in range(0, len(ordered), 32):
            some, count = learner.held_out_loss(ordered[at : at + 32])
            nats, tokens = nats + some, tokens + count
    return nats / max(tokens, 1)


def _save(
    file: Path,
    kept: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    about: dict[str, Any],
) -> None:
    tensors: dict[str, Tensor] = {}
    for name, value in kept.items():
        tensors[f"value.{name}"] = value
        for moment in _MOMENTS if isinstance(value, nn.Parameter) else ():
            tensors[f"{moment}.{name}"] = optimizer.state[value][moment]
    _write(tensors, file, {"about": json.dumps(about), "progress": json.dumps(asdict(progress))})


def _resume(
    file: Path,
    kept: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    about: dict[str, Any],
) -> Progress:
    if not file.is_file():
        return Progress()
    try:
        with safe_open(file, framework="pt") as state:
            metadata = state.metadata() or {}
            if json.loads(metadata["about"]) != about:
                raise InputError(
                    f"{file.parent}: holds an unfinished training of other data or settings; "
                    f"remove it or give another folder"
                )
            found = json.loads(metadata["progress"])
            with torch.no_grad():
                for name, value in kept.items():
                    value.copy_(state.get_tensor(f"value.{name}"))
                    if isinstance(value, nn.Parameter):
                        optimizer.state[value] = {
                            "step": torch.tensor(float(found["step"])),
                            **{m: state.get_tensor(f"{m}.{name}") for m in _MOMENTS},
                        }
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise InputError(f"{file}: damaged; remove its folder and train again") from error
    found["history"] = [tuple(one) for one in found["history"]]
    return Progress(**found)


def _load(file: Path, kept: dict[str, Tensor]) -> None:
    with safe_open(file, framework="pt") as state, torch.no_grad():
        for name, value in kept.items():
            value.copy_(state.get_tensor(name))


def _write(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str]) -> None:
    unfinished = file.with_name(f".{file.name}.new")
    save_file(
        {n: t.detach().contiguous() for n, t in tensors.items()}, unfinished, metadata=metadata
    )
    unfinished.replace(file)

"""A base model made lighter: the layers that change least are left out, and the rest learns to say what the whole said.

A layer's influence is how far it turns what passes through it (ShortGPT, Men et al. 2024, arXiv:2403.03853, equation 1)::

    BI(i) = 1 - mean over tokens of cos(x(i), x(i+1))

where x(i) goes into layer i and x(i+1) comes out of it. What is left is healed by distillation (Hinton et al. 2015,
arXiv:1503.02531): the divergence of its next-token distributions from the whole model's, on tokens of copy. Embeddings and
output layer stay those of the whole. The result is a base model like any other, with a digest of its own.

Axes: N tokens of copy, D hidden width.
"""

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from handbill.errors import InputError
from handbill.generator.base_models import (
    LLAMA_LIKE,
    BaseModel,
    architecture,
    load_base,
    resolve_base,
)
from handbill.generator.causal import (
    CausalLearner,
    Limits,
    copy_positions,
    copy_states,
    save_causal,
)
from handbill.generator.copies import Copy
from handbill.generator.generators import UNFINISHED, Trained, check_folder, finish
from handbill.generator.head_loss import token_divergences
from handbill.generator.pairs import digest, split, training_pairs
from handbill.generator.prompts import EncodedExample
from handbill.generator.training import Say, Schedule, held_out_loss, train

MEASURED: Final = 64
HEALING: Final = Schedule(epochs=1, batch_rows=4, learning_rate=3e-4, checks=4, patience=4)
_BATCH: Final = 8  # rows that run at once to be scored


def shorten_base(
    name: str,
    copies: Iterable[Copy],
    folder: Path,
    *,
    layers: int,
    steps: int = 100,
    schedule: Schedule = HEALING,
    measured: int = MEASURED,
    say: Say = lambda _: None,
) -> Trained:
    """Write a base model with fewer layers; go on where an earlier call was cut off.

    Args:
        name: The base model, by name, folder or hub id.
        copies: Products with ``text`` or ``references``; published ones, since weights remember.
        folder: Where to.
        layers: How many are left; the first and the last always are.
        steps: Of healing; 0 for none.
        schedule: How fast, and how often held-out loss is measured on the way; it is gone through once.
        measured: Pieces of copy that influence is measured on, and held-out ones that loss is.
        say: Told how far it is.

    Returns:
        With ``shortened`` in its facts: what was left out of what, and what that costs.

    Raises:
        InputError: Too little copy, a base model of another kind or with too few layers, or the folder holds
            something.
    """
    check_folder(folder)
    base = resolve_base(name)
    of = _check(base, layers=layers, steps=steps)
    pairs = training_pairs(copies)
    trained, held_out = (_shuffled(side, schedule.seed) for side in split(pairs))
    whole, tokenizer = load_base(base)
    learner = CausalLearner(whole, tokenizer, Limits())
    kept = [learner.encode(one) for one in held_out[:measured]]
    scored = [learner.encode(one) for one in trained[:measured]]
    say(f"{base.name}: {of} layers, their influence measured on {len(scored)} pieces of copy")
    influence = influences(whole, scored)
    dropped = least(influence, of - layers)
    short = without(whole, dropped)
    healing = Healing(short, tokenizer, whole)
    losses = {"whole": held_out_loss(learner, kept), "cut": held_out_loss(healing, kept)}
    told = f"held-out loss {losses['whole']:.3f} with them, {losses['cut']:.3f} without"
    say(f"layers left out: {', '.join(map(str, dropped))}; {told}")
    history: list[tuple[int, float, float]] = []
    if steps:
        wanted = steps * schedule.batch_rows
        rows = [learner.encode(one) for one in trained[:wanted]]
        rows = (rows * -(-wanted // len(rows)))[:wanted]
        about = f"shorten/{base.digest}/{dropped}/{digest(pairs)}"
        once = replace(schedule, epochs=1)
        work = folder / UNFINISHED
        progress = train(healing, rows, kept, once, folder=work, data=about, say=say)
        losses["healed"], history = progress.best, progress.history
    save_causal(short, tokenizer, folder)
    found = Trained(
        folder=folder,
        steps=steps,
        held_out_loss=losses.get("healed", losses["cut"]),
        facts={
            "parameters": sum(p.numel() for p in short.parameters()),
            "schedule": asdict(schedule),
            "history": history,
            "shortened": {
                "base": base.name,
                "base_digest": base.digest,
                "layers": layers,
                "dropped": dropped,
                "influence": {str(i): round(value, 5) for i, value in influence.items()},
                "held_out_loss": {name: round(value, 4) for name, value in losses.items()},
            },
        },
    )
    finish("causal", found, pairs=len(trained), held_out=len(held_out))
    return found


@torch.inference_mode()
def influences(model: Any, rows: Sequence[EncodedExample]) -> dict[int, float]:
    """Block influence of every layer but the first and the last, over the tokens that predict the rows' copy."""
    inner = range(1, len(model.model.layers) - 1)
    sums, tokens = dict.fromkeys(inner, 0.0), 0
    ordered = sorted(rows, key=len)
    for at in range(0, len(ordered), _BATCH):
        ids_BT, row_N, position_N = copy_positions(ordered[at : at + _BATCH])
        states = model.model(
            input_ids=ids_BT, use_cache=False, output_hidden_states=True
        ).hidden_states
        for layer in inner:
            before_ND, after_ND = (states[i][row_N, position_N] for i in (layer, layer + 1))
            sums[layer] += float((1 - cosine_similarity(before_ND, after_ND, dim=1)).sum())
        tokens += len(row_N)
    return {layer: total / tokens for layer, total in sums.items()}


def least(influence: dict[int, float], count: int) -> list[int]:
    """The layers with the least influence, rising.

    >>> least({1: 0.3, 2: 0.1, 3: 0.2}, 2)
    [2, 3]
    """
    return sorted(sorted(influence, key=lambda layer: influence[layer])[:count])


def without(model: Any, dropped: Sequence[int]) -> Any:
    """A copy of a model without some of its layers; those that are left are numbered anew."""
    kept = [i for i in range(len(model.model.layers)) if i not in dropped]
    fields = model.config.to_dict() | {"num_hidden_layers": len(kept)}
    if kinds := fields.get("layer_types"):
        fields["layer_types"] = [kinds[i] for i in kept]
    with torch.random.fork_rng(devices=[]):
        short = type(model)(type(model.config).from_dict(fields))
    body, layers = short.model, short.model.layers
    with torch.no_grad():
        body.embed_tokens.load_state_dict(model.model.embed_tokens.state_dict())
        for layer, i in zip(layers, kept, strict=True):
            layer.load_state_dict(model.model.layers[i].state_dict())
        body.norm.load_state_dict(model.model.norm.state_dict())
        short.lm_head.load_state_dict(model.lm_head.state_dict())
    short.generation_config = model.generation_config
    return short.requires_grad_(False).eval()


class Healing(CausalLearner):
    """A shortened model that learns from the whole one; everything but embeddings and output layer is trained."""

    def __init__(self, short: Any, tokenizer: Any, whole: nn.Module) -> None:
        super().__init__(short, tokenizer, Limits())
        self._whole = whole
        short.model.layers.requires_grad_(True)
        short.model.norm.requires_grad_(True)

    def loss(self, rows: Sequence[EncodedExample], progress: float) -> Tensor:  # noqa: ARG002
        """Mean divergence from the whole model, nats a token of copy."""
        with torch.no_grad():
            wanted_ND, _ = copy_states(self._whole, rows)
        hidden_ND, _ = copy_states(self.module, rows)
        head_VD = self.module.get_parameter("lm_head.weight")
        return token_divergences(hidden_ND, wanted_ND, head_VD).mean()


def _check(base: BaseModel, *, layers: int, steps: int) -> int:
    """How many layers the base model has; refused where so many cannot be left."""
    kind = architecture(base)
    if kind not in LLAMA_LIKE:
        raise InputError(
            f"base model {base.name} is a {kind}: shortened are {', '.join(LLAMA_LIKE)}"
        )
    of = int(json.loads((base.path / "config.json").read_text())["num_hidden_layers"])
    if not 2 <= layers < of:
        raise InputError(f"layers={layers} not in [2, {of - 1}]: {base.name} has {of}")
    if steps < 0:
        raise InputError(f"steps={steps} must not be negative")
    return of


def _shuffled(pairs: Sequence[Copy], seed: int) -> list[Copy]:
    """In an order that is the same for a seed."""
    order = list(pairs)
    random.Random(f"shorten/{seed}").shuffle(order)  # noqa: S311 - an order, no secret
    return order

"""What a merchant learns about its adapters on its own shoppers; the numbers stay with it."""

import json
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from safetensors.numpy import load_file

from handbill.clients.trainer import Trainer
from handbill.errors import InputError, MissingError
from handbill.federation.messages import Recipe
from handbill.generator.adapters import AdapterSpec, Tensors
from handbill.generator.lora import LoraModel
from handbill.generator.metrics import distinct_n, rouge_l

ARMS: Final = ("base", "global", "personal")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmScore:
    """One adapter on held-out shoppers: loss in nats a token, ROUGE-L and distinct-2 in [0, 1]."""

    loss: float
    rouge_l: float
    distinct_2: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Base model, federated adapter and the shop's own, on the same held-out shoppers.

    Attributes:
        samples: Copy for the same requests by base and by the shop's own adapter.
        other_prompts: The adapters were trained with other scenarios than the shop has now, whose prompts
            these are.
    """

    shop: str
    rows: int
    written: int
    arms: dict[str, ArmScore]
    samples: list[dict[str, str]]
    other_prompts: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def evaluate(trainer: Trainer, *, rows: int, written: int) -> Evaluation:
    """Measure base, global and personal adapter.

    Args:
        trainer: A merchant's trainer that has taken part in a run.
        rows: Held-out shoppers whose loss is measured.
        written: How many of them copy is written for (greedy), for ROUGE-L and distinct-2.

    Raises:
        MissingError: The merchant has not finished a run yet.
        InputError: No prompt fits.
    """
    model, recipe, adapters = load_arms(trainer)
    held_out = trainer.fitting(trainer.users.held_out[:rows], recipe)
    encoded = trainer.encode(held_out, recipe)
    if not encoded:
        raise InputError(
            f"{trainer.merchant.id}: no held-out shopper's prompt fits into "
            f"max_prompt_tokens={recipe.max_prompt_tokens}; shorten the instructions of "
            f"{trainer.scenarios.file}"
        )
    some = held_out[:written]
    prompts = [row.ids[: row.n_prompt] for row in encoded[:written]]
    arms, texts = {}, {}
    for arm, tensors in adapters.items():
        model.load(tensors)
        texts[arm] = model.write(prompts, max_tokens=recipe.max_copy_tokens)
        pairs = zip(texts[arm], some, strict=True)
        arms[arm] = ArmScore(
            loss=model.held_out_loss(encoded, batch=recipe.batch_rows),
            rouge_l=sum(rouge_l(text, row.text) for text, row in pairs) / max(len(some), 1),
            distinct_2=distinct_n(texts[arm], 2),
        )
    own = "personal" if "personal" in texts else "global"
    samples = [
        {
            "title": row.request.title,
            "shopper": row.request.shopper,
            "before": before,
            "after": after,
        }
        for row, before, after in zip(some, texts["base"], texts[own], strict=True)
    ]
    return Evaluation(
        shop=trainer.merchant.id,
        rows=len(held_out),
        written=len(some),
        arms=arms,
        samples=samples,
        other_prompts=_about(trainer).get("prompts", "") != trainer.scenarios.prompts,
    )


def load_arms(trainer: Trainer) -> tuple[LoraModel, Recipe, dict[str, Tensors]]:
    """The model, recipe and adapters of the last run a merchant took part in, by :data:`ARMS`.

    Raises:
        MissingError: The merchant has not finished a run yet.
    """
    folder, about = trainer.home / "adapters", _about(trainer)
    model = trainer.model_for(AdapterSpec.from_dict(about["spec"]))
    found = {"base": {n: np.zeros(s, np.float32) for n, s in model.shapes.items()}}
    for arm in ARMS[1:]:
        path = folder / f"{arm}.safetensors"
        if path.is_file():
            found[arm] = dict(load_file(path))
    return model, Recipe(**about["recipe"]), found


def _about(trainer: Trainer) -> dict[str, Any]:
    """What is kept of the last run beside its adapters."""
    file = trainer.home / "adapters" / "run.json"
    if not file.is_file():
        raise MissingError(
            f"{file.parent}: no adapters yet; this shop has not finished a training run"
        )
    return dict(json.loads(file.read_text()))

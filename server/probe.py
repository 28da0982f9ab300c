"""The operator's probe: invented requests and copy that come with handbill.

The server has no shopper's row to measure on, so it looks at these before it commits a round.
"""

import json
from importlib.resources import files

from handbill.federation.messages import Recipe
from handbill.generator.adapters import Tensors
from handbill.generator.behaviour import probe_lessons
from handbill.generator.interest import InterestModel
from handbill.generator.lora import LoraModel
from handbill.generator.prompts import CopyRequest, Example, encode_example


def probe_examples() -> list[Example]:
    """The probe's requests, with copy that answers them."""
    lines = files("handbill.server").joinpath("probe.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [
        Example(
            user="",
            item="",
            request=CopyRequest(**{k: v for k, v in row.items() if k != "text"}),
            text=row["text"],
        )
        for row in rows
    ]


def probe_loss(model: LoraModel, weights: Tensors, recipe: Recipe) -> float:
    """Loss of these weights on the probe, in nats a token."""
    model.load(weights)
    rows = [
        encode_example(
            model.tokenizer,
            row,
            max_prompt_tokens=recipe.max_prompt_tokens,
            max_copy_tokens=recipe.max_copy_tokens,
        )
        for row in probe_examples()
    ]
    return model.held_out_loss(rows)


def interest_probe_loss(model: InterestModel, weights: Tensors) -> float:
    """Loss of these weights on invented shoppers, in nats a row."""
    model.load(weights)
    return model.held_out_loss(probe_lessons(buckets=model.spec.buckets))

"""A base model as it comes, and under LoRA trained in one place, together, and together with privacy."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors.numpy import load_file, save_file

from handbill.clients.merchant import Policy
from handbill.generator.adapters import AdapterSpec, Tensors, top_layers
from handbill.generator.base_models import resolve_base
from handbill.generator.causal import CausalWriter, Limits
from handbill.generator.copies import Copy
from handbill.generator.lora import LoraModel
from handbill.generator.pairs import aligned, example
from handbill.generator.prompts import encode_example
from handbill.server.settings import ServerSettings
from handbill.simulations.arms import Arms, Settings, Shop, varied

ARMS: Final = ("base", "central", "federated", "private")
EPSILON: Final = 8.0
SLOWER_WITHOUT_NOISE: Final = 1 / 3  # as benchmarks/dp_utility.py


class LoraArms:
    """Trains the arms once for each data set and keeps their adapters in a folder."""

    def __init__(self, work: Path, name: str) -> None:
        self.work, self.own = work, bool(name)
        defaults = ServerSettings()
        base = resolve_base(name or defaults.base)
        layers = top_layers(base, defaults.adapter.layers)
        spec = AdapterSpec(rank=defaults.adapter.rank, layers=layers)
        self.model = LoraModel(base, spec, cache_bytes=2**29)
        self.settings = Settings(recipe=defaults.recipe, server=defaults.optimizer)

    def writer(self, arm: str, name: str, copies: Sequence[Copy], *, insist: float) -> CausalWriter:
        """A writer with an arm's adapter, trained now if it is not there."""
        file = self.work / "adapters" / f"{name}.{arm}.safetensors"
        if arm == "base":
            zeros = {n: np.zeros(s, np.float32) for n, s in self.model.shapes.items()}
            self.model.load(zeros)
        else:
            if not file.is_file():
                file.parent.mkdir(parents=True, exist_ok=True)
                save_file(self._train(arm, copies), file)
            self.model.load(load_file(file))
        recipe = self.settings.recipe
        limits = Limits(prompt=recipe.max_prompt_tokens, copy=recipe.max_copy_tokens)
        return CausalWriter(
            self.model.model,
            self.model.tokenizer,
            limits=limits,
            insist=insist,
            echoes=not self.own,
            batch_rows=16,
        )

    def _train(self, arm: str, copies: Sequence[Copy]) -> Tensors:
        private = arm == "private"
        settings = replace(self.settings, epsilon=EPSILON if private else None)
        if not private:
            slower = settings.server.learning_rate * SLOWER_WITHOUT_NOISE
            settings = varied(settings, server_learning_rate=slower)
        shops = self._shops(copies, parted=arm != "central")
        if arm == "central":  # as many shoppers a step as all merchants together
            merchants = len({_owner(copy)[0] for copy in copies})
            many = settings.recipe.expected_users * merchants
            settings = varied(settings, expected_users=many)
        *_, weights = Arms(self.model, shops, settings).together()
        return weights

    def _shops(self, copies: Sequence[Copy], *, parted: bool) -> list[Shop]:
        """One shop a merchant, or one of all; who is protected is the shopper, or else the product."""
        users: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
        recipe = self.settings.recipe
        for copy in copies:
            # Asked for is what the text states of the product's own: other rows' values have no part in it.
            pair = aligned(replace(copy, text=copy.references[0], references=()), {})
            merchant, protected = _owner(pair)
            row = encode_example(
                self.model.tokenizer,
                example(pair),
                max_prompt_tokens=recipe.max_prompt_tokens,
                max_copy_tokens=recipe.max_copy_tokens,
            )
            users[merchant if parted else "all"][f"{merchant}/{protected}"].append(row)
        return [
            Shop(
                id=shop,
                users=list(rows.values()),
                held_out=(),
                policy=Policy.for_users(len(rows)),
            )
            for shop, rows in users.items()
        ]


def _owner(copy: Copy) -> tuple[str, str]:
    """The merchant of a piece, and who is protected by its noise: the shopper, or else the product."""
    if "/" not in copy.id:  # adgen_zh, whose shops are named as its titles
        return copy.request.title, copy.id
    merchant, user, item = copy.id.split("/")
    return merchant, user or item

"""Does federating pay at this epsilon? The same budget spent four ways, measured on held-out rows.

Arms: ``base`` (nothing trained), ``alone`` (the whole budget on the merchant's own data),
``global`` (private rounds together), ``personal`` (the global adapter, then own private steps, both
out of the one budget: what handbill does). Private steps, noise, calibration and the server's
optimiser are the product's own; what is left out is the network, the ledger and the signatures,
which change no number.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from handbill.clients.encoding import Encoder
from handbill.clients.markets import find_shops
from handbill.clients.merchant import Policy
from handbill.clients.shop import load_shop
from handbill.clients.shoppers import ShopUsers
from handbill.federation.aggregation import MeanAccumulator, ServerOptimizer
from handbill.federation.messages import Recipe
from handbill.generator.adapters import Tensors
from handbill.generator.lora import LoraModel
from handbill.generator.metrics import distinct_n, rouge_l
from handbill.generator.prompts import Example
from handbill.privacy.accounting import calibrate_noise
from handbill.privacy.clipping import AdaptiveClipping
from handbill.privacy.events import PrivateSteps
from handbill.privacy.noise import Noise, SecureNoise
from handbill.privacy.training import PrivateModel, StepPlan, take_private_steps

NON_PRIVATE = 1e-9  # noise multiplier of the arms without privacy: the same code, no noise to see


class Model(PrivateModel[Any], Protocol):
    """What arms train: the language model, or the model of shoppers' interest."""

    shapes: dict[str, tuple[int, int]]

    def load(self, tensors: Tensors) -> None:
        """Set what is trained."""

    def tensors(self) -> Tensors:
        """Return a copy of what is trained."""

    def held_out_loss(self, rows: Sequence[Any], *, batch: int) -> float:
        """Return the mean loss in nats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shop:
    """A merchant of an experiment: what it trains on and what it is measured on.

    Attributes:
        users: Every shopper's rows, as the model takes them.
        examples: The held-out rows as text, where copy can be written for them.
    """

    id: str
    users: Sequence[Sequence[Any]]
    held_out: Sequence[Any]
    examples: Sequence[Example] = ()
    policy: Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A recipe, the server's optimiser and the budget.

    Attributes:
        epsilon: Of each merchant, for everything it does; None trains without privacy.
        adam: Which Adam a merchant uses for its own steps.
        adapt: Whether the clipping norm follows a quantile.
    """

    recipe: Recipe = field(default_factory=Recipe)
    server: ServerOptimizer = field(default_factory=lambda: ServerOptimizer(learning_rate=3e-2))
    epsilon: float | None = 8.0
    adam: Literal["adam", "dp-adam"] = "adam"
    adapt: AdaptiveClipping | None = None


def load_shops(
    folder: Path,
    model: LoraModel,
    recipe: Recipe,
    *,
    held_out: int,
    describe: Path | None = None,
    most_users: int = 0,
    parts: int = 1,
) -> list[Shop]:
    """Read a market's shops, split as the product splits them, and encode their rows.

    Args:
        folder: The market.
        model: Whose tokenizer.
        recipe: How long prompts and copy may be.
        held_out: Held-out shoppers to measure on, of each shop.
        describe: The market's description, where it is not in the folder.
        most_users: Take so many training shoppers of a shop; 0 takes all.
        parts: Cut every shop into so many shops of different shoppers.
    """
    shops = []
    for source in find_shops(folder, describe=describe):
        encoder = Encoder(source.info.scenarios)
        encode = partial(encoder.encode, model.tokenizer, recipe=recipe)
        whole = ShopUsers.of(load_shop(source), held_out=0.1)
        for part in range(parts):
            train = whole.train[part::parts]
            train = train[: most_users or len(train)]
            examples = whole.held_out[part::parts][:held_out]
            examples = tuple(encoder.fitting(model.tokenizer, examples, recipe))
            shops.append(
                Shop(
                    id=source.info.id + (f"-{part + 1}" if parts > 1 else ""),
                    users=[encode(rows) for rows in train],
                    held_out=encode(examples),
                    examples=examples,
                    policy=Policy.for_users(round(len(train) / 0.9), min_users=1),
                )
            )
    return shops


class Arms:
    """Train the arms of one experiment on one shared model."""

    def __init__(self, model: Model, shops: Sequence[Shop], settings: Settings) -> None:
        self.model, self.shops, self.settings = model, shops, settings
        self.noise: Noise = SecureNoise()
        self.zero: Tensors = {n: np.zeros(s, np.float32) for n, s in model.shapes.items()}

    def alone(self, shop: Shop) -> Tensors:
        """The whole budget on the shop's own data: a federation of one, with as many steps.

        A shop too small for the recipe samples as many shoppers as its policy allows.
        """
        recipe = self.settings.recipe
        most = max(1, int(shop.policy.users * shop.policy.max_sampling_rate))
        own = replace(
            recipe,
            rounds=recipe.private_steps,
            local_steps=1,
            personal_steps=0,
            expected_users=min(recipe.expected_users, most),
        )
        *_, last = Arms(self.model, [shop], replace(self.settings, recipe=own)).together()
        return last

    def together(self) -> Iterator[Tensors]:
        """The global adapter after each round."""
        recipe, weights = self.settings.recipe, self.zero
        state = self.settings.server.start(weights)
        for number in range(1, recipe.rounds + 1):
            total = MeanAccumulator(self.model.shapes, max_norm=1e9)
            for shop in self.shops:
                own = self._steps(shop, weights, recipe.local_steps)
                total.add({n: own[n] - weights[n] for n in own})
            server = self.settings.server.at(number, of=recipe.rounds)
            weights, state = server.step(weights, total.mean(), state)
            yield weights

    def personal(self, shop: Shop, weights: Tensors) -> Tensors:
        """The shop's own adapter on top of the global one."""
        recipe = self.settings.recipe
        rate = recipe.personal_learning_rate
        return self._steps(shop, weights, recipe.personal_steps, learning_rate=rate)

    def noise_multiplier(self, shop: Shop) -> float:
        """What the product would calibrate for this shop and plan."""
        if self.settings.epsilon is None:
            return NON_PRIVATE
        return calibrate_noise(
            epsilon=self.settings.epsilon,
            delta=shop.policy.delta,
            sampling_rate=self.sampling_rate(shop),
            steps=self.settings.recipe.private_steps,
        )

    def sampling_rate(self, shop: Shop) -> float:
        """Chance of each shopper to be in one step."""
        return min(1.0, self.settings.recipe.expected_users / shop.policy.users)

    def loss(self, shop: Shop, weights: Tensors) -> float:
        """Held-out loss in nats a token."""
        self.model.load(weights)
        return self.model.held_out_loss(shop.held_out, batch=16)

    def _steps(
        self,
        shop: Shop,
        weights: Tensors,
        steps: int,
        *,
        learning_rate: float | None = None,
    ) -> Tensors:
        """Private steps from these weights: SGD as in a round, or Adam where a rate is given."""
        self.model.load(weights)
        if not steps:
            return self.model.tensors()
        recipe = self.settings.recipe
        plan = StepPlan(
            event=PrivateSteps(
                noise_multiplier=self.noise_multiplier(shop),
                sampling_rate=self.sampling_rate(shop),
                steps=steps,
            ),
            clipping_norm=recipe.clipping_norm,
            expected_users=recipe.expected_users,
            rows_per_user=recipe.rows_per_user,
            batch_rows=recipe.batch_rows,
            learning_rate=learning_rate or recipe.learning_rate,
            optimizer=self.settings.adam if learning_rate else "sgd",
            adapt=self.settings.adapt,
        )
        take_private_steps(self.model, shop.users, plan, noise=self.noise)
        return self.model.tensors()


def written(model: LoraModel, shop: Shop, recipe: Recipe, count: int) -> dict[str, float]:
    """ROUGE-L against the true copy and distinct-2 of the model's greedy copy, both in [0, 1]."""
    some = shop.examples[:count]
    prompts = [row.ids[: row.n_prompt] for row in shop.held_out[:count]]
    texts = model.write(prompts, max_tokens=recipe.max_copy_tokens)
    rouge = [rouge_l(text, row.text) for text, row in zip(texts, some, strict=True)]
    return {"rouge_l": float(np.mean(rouge)), "distinct_2": distinct_n(texts, 2)}


def takes_part(shop: Shop, recipe: Recipe) -> bool:
    """Whether the default policy of such a shop allows the recipe."""
    policy = shop.policy
    return recipe.expected_users <= policy.users * policy.max_sampling_rate


def varied(settings: Settings, **changes: object) -> Settings:
    """Settings with some fields changed, whether they are the recipe's, the server's or its own."""
    recipe, server = settings.recipe, settings.server
    for name, value in changes.items():
        if name.startswith("server_"):
            server = replace(server, **{name.removeprefix("server_"): value})  # type: ignore[arg-type]
        elif name in Recipe.__dataclass_fields__:
            recipe = replace(recipe, **{name: value})  # type: ignore[arg-type]
        else:
            settings = replace(settings, **{name: value})  # type: ignore[arg-type]
    return replace(settings, recipe=recipe, server=server)

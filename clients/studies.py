"""What a trainer learns from, by what a run trains: the shop's copy, or what its shoppers did.

Paying, sampling, clipping, noise, sums and reports are the same code for both; here is what differs.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from safetensors.numpy import save_file

from handbill.clients.behaviour import Behaviour, read_behaviour
from handbill.clients.early_stop import CatalogueStop
from handbill.clients.feedback import Pair
from handbill.clients.merchant import POLICY_FILE, Merchant, Policy
from handbill.clients.shop import held_out_test
from handbill.clients.shoppers import SPLIT_LABEL, ShopUsers, own_source
from handbill.clients.variants import DrawnRows, Variants
from handbill.errors import PolicyError
from handbill.federation.messages import Instruction, Recipe
from handbill.generator.adapters import Tensors
from handbill.generator.behaviour import probe_lessons
from handbill.generator.interest import InterestModel
from handbill.generator.interest_spec import InterestSpec, Seen
from handbill.generator.lora import LoraModel
from handbill.generator.model_specs import write_interest
from handbill.generator.preference import EncodedPair, PreferenceModel
from handbill.generator.prompts import CopyRequest, EncodedExample, Example
from handbill.privacy.training import PrivateModel

INVENTED: Final = Example(
    user="",
    item="",
    request=CopyRequest(title="Oak desk lamp"),
    text="A warm light for long evenings.",
)
CATALOGUE_ROWS: Final = 32  # descriptions that an early stop looks at
CURVE_ROWS: Final = 8  # held-out rows of copy looked at in every round, for the shop's own curve
INTEREST_ROWS: Final = 512  # the same for the model of interest, whose rows cost next to nothing
INTEREST_FOLDER: Final = "interest"

Rows = TypeVar("Rows")
Encode = Callable[[Sequence[Example], Recipe], list[EncodedExample]]


class Study(Protocol):
    """One kind of model with what a shop has to teach it. Rows are as the model takes them."""

    @property
    def model(self) -> LoraModel | InterestModel:
        """What is trained."""

    def invented(self, recipe: Recipe) -> list[Any]:
        """Rows of nobody: what is measured on them may be told."""

    def held_out(self, recipe: Recipe) -> list[Any]:
        """Rows of shoppers who are only measured on; what is measured stays here."""

    def users(self, recipe: Recipe, *, label: str = "") -> list[Sequence[Any]]:
        """Rows of each shopper to train on.

        Args:
            recipe: How long a row may be.
            label: Of the round: the same draws the same variants, where there are any.

        Raises:
            PolicyError: Too few have any. How many is private: the server reads this error.
        """

    def learner(self, users: Sequence[Sequence[Any]], *, together: int) -> PrivateModel[Any]:
        """What takes the private steps; ``together`` rows are computed at once."""

    def early_stop(self, recipe: Recipe) -> CatalogueStop | None:
        """What watches the shop's own steps, if anything does."""

    def keep(self, asked: Instruction, received: Tensors, own: Tensors | None) -> None:
        """Keep the weights that came, and the shop's own where there are any."""


class CopyStudy:
    """The language model's adapter, from the shop's rows, catalogue and feedback."""

    def __init__(
        self,
        home: Path,
        merchant: Merchant,
        policy: Policy,
        *,
        model: LoraModel,
        users: ShopUsers,
        encode: Encode,
        prompts: str = "",
        variants: Variants | None = None,
    ) -> None:
        """Learn from ``users``; ``prompts`` is what ``encode`` makes prompts of (``Scenarios.prompts``)."""
        self._home, self._merchant, self._policy = home, merchant, policy
        self._variants = variants
        self.model, self._users, self._encode = model, users, encode
        self._prompts = prompts

    def invented(self, recipe: Recipe) -> list[EncodedExample]:
        """See :class:`Study`.

        Raises:
            PolicyError: The shop's instruction leaves no room: its scenarios say so, no row does.
        """
        rows = self._encode([INVENTED], recipe)
        if not rows:
            raise PolicyError(
                f"max_prompt_tokens={recipe.max_prompt_tokens} is too small for this shop's instruction "
                f"of {INVENTED.request.scenario}; nothing was spent"
            )
        return rows

    def held_out(self, recipe: Recipe) -> list[EncodedExample]:
        """See :class:`Study`."""
        rows = self._encode(self._users.held_out[:CURVE_ROWS], recipe)
        return rows or self.invented(recipe)

    def users(
        self, recipe: Recipe, *, label: str = ""
    ) -> list[Sequence[EncodedExample | EncodedPair]]:
        """See :class:`Study`. Those without a token of copy are left out."""
        users: list[Sequence[EncodedExample | EncodedPair]] = []
        for rows in self._users.lessons:
            encoded = [(row, ids) for row in rows for ids in self._encode_any(row, recipe)]
            usable = [(row, ids) for row, ids in encoded if ids.has_copy]
            examples = [row for row, _ in usable if isinstance(row, Example)]
            if self._variants and len(examples) == len(usable):
                users.append(self._varied(self._variants, examples, recipe, label))
            else:  # of two answers to one question neither is put in other words
                users.append([ids for _, ids in usable])
        return _enough(
            [rows for rows in users if rows],
            self._policy,
            "fewer shoppers have copy to train on than min_users",
        )

    def learner(
        self, users: Sequence[Sequence[EncodedExample | EncodedPair]], *, together: int
    ) -> PrivateModel[Any]:
        """See :class:`Study`."""
        given = [rows for rows in users if not isinstance(rows, DrawnRows)]  # none is a pair there
        pairs = [row for rows in given for row in rows if isinstance(row, EncodedPair)]
        return PreferenceModel(self.model, pairs, batch_rows=together) if pairs else self.model

    def early_stop(self, recipe: Recipe) -> CatalogueStop | None:
        """See :class:`Study`. The shop's own adapter is watched on its catalogue, if it is to be."""
        rise = self._merchant.stop_at_rise
        rows = self._encode(self._users.catalogue[:CATALOGUE_ROWS], recipe)
        rows = [row for row in rows if len(row) > row.n_prompt]
        if not rise or not rows:
            return None
        return CatalogueStop(self.model, rows, rise=rise, batch_rows=recipe.batch_rows)

    def keep(self, asked: Instruction, received: Tensors, own: Tensors | None) -> None:
        """See :class:`Study`."""
        folder = self._home / "adapters"
        folder.mkdir(exist_ok=True)
        save_file(received, folder / "global.safetensors")
        if own is not None:
            save_file(own, folder / "personal.safetensors")
        about = {
            "run": asked.run,
            "spec": asked.spec.to_dict(),
            "recipe": asdict(asked.recipe),
            "prompts": self._prompts,
        }
        (folder / "run.json").write_text(json.dumps(about))

    def _varied(
        self, variants: Variants, rows: Sequence[Example], recipe: Recipe, label: str
    ) -> Sequence[EncodedExample]:
        """One shopper's rows, or variants of them: as many."""

        def drawn(i: int) -> EncodedExample:
            return self._encode([variants.drawn(rows[i], label)], recipe)[0]

        return DrawnRows(len(rows), drawn)

    def _encode_any(
        self, row: Example | Pair, recipe: Recipe
    ) -> list[EncodedExample | EncodedPair]:
        if isinstance(row, Pair):  # one prompt for both, so both have room or none
            both = self._encode((row.chosen, row.rejected), recipe)
            return [EncodedPair(*both)] if both else []
        return list(self._encode((row,), recipe))


class InterestStudy:
    """The model of interest, from what the shop's shoppers did. The tables are read when needed first."""

    def __init__(
        self, home: Path, merchant: Merchant, policy: Policy, *, spec: InterestSpec
    ) -> None:
        self._home, self._merchant, self._policy, self.spec = home, merchant, policy, spec
        self.model = InterestModel(spec)

    @cached_property
    def _behaviour(self) -> Behaviour:
        return read_behaviour(own_source(self._merchant))

    @cached_property
    def _split(self) -> tuple[list[list[Seen]], list[Seen]]:
        """Rows of each shopper to train on, and of all who are held out."""
        away = held_out_test(
            self._merchant.id, fraction=self._policy.held_out, seed_label=SPLIT_LABEL
        )
        train: list[list[Seen]] = []
        held_out: list[Seen] = []
        for user in sorted(self._behaviour.shoppers):
            rows = self._behaviour.lessons(user, buckets=self.spec.buckets)
            if away(user):
                held_out += rows
            elif rows:  # who only searched met no product to learn from
                train.append(rows)
        return train, held_out

    def invented(self, recipe: Recipe) -> list[Seen]:
        """See :class:`Study`."""
        del recipe
        return probe_lessons(buckets=self.spec.buckets)

    def held_out(self, recipe: Recipe) -> list[Seen]:
        """See :class:`Study`."""
        return self._split[1][:INTEREST_ROWS] or self.invented(recipe)

    def users(self, recipe: Recipe, *, label: str = "") -> list[Sequence[Seen]]:
        """See :class:`Study`."""
        del recipe, label
        return _enough(
            list[Sequence[Seen]](self._split[0]),
            self._policy,
            "fewer shoppers did anything to learn interest from than min_users",
        )

    def learner(self, users: Sequence[Sequence[Seen]], *, together: int) -> PrivateModel[Any]:
        """See :class:`Study`."""
        del users, together
        return self.model

    def early_stop(self, recipe: Recipe) -> None:
        """See :class:`Study`."""
        del recipe

    def keep(self, asked: Instruction, received: Tensors, own: Tensors | None) -> None:
        """See :class:`Study`."""
        del asked, own
        write_interest(self._home / INTEREST_FOLDER, self.spec, received)


def _enough(users: list[Rows], policy: Policy, what: str) -> list[Rows]:
    if len(users) < policy.min_users:
        raise PolicyError(
            f"{what}={policy.min_users} of {POLICY_FILE}; nothing was spent. See "
            f"`handbill data check`"
        )
    return users

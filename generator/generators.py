"""The kinds of generator that can be trained here from nothing, in folders of one form.

A folder holds the tokenizer, safetensors and ``generator.json``, which says what kind it is and how it was trained, and
the ``scenarios.toml`` it was trained with, where that was somebody's own. A causal model's is a base model in
Hugging Face layout besides.
"""

import json
import math
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

from handbill.errors import InputError
from handbill.generator.copies import Copy
from handbill.generator.pairs import digest, split, training_pairs, variant_pairs, vocabulary_texts
from handbill.generator.scenarios import SHIPPED, Scenarios, read_scenarios, shipped
from handbill.generator.training import Learner, Progress, R, Say, Schedule, train

KINDS: Final[dict[str, str]] = {
    "causal": "a small Llama: a base model for everything else",
    "seq2seq": "recurrent encoder and decoder with attention and copying",
    "cvae": "the same with a latent variable: conditional variational autoencoder",
    "gan": "a seq2seq trained on against a discriminator, which also scores copy",
}
CARD: Final = "generator.json"
FORMAT: Final = "handbill-generator/1"
UNFINISHED: Final = "training"


class Writer(Protocol):
    """Whatever writes copy."""

    def write(self, products: Sequence[Copy], *, n: int = 1, seed: int = 0) -> list[list[str]]:
        """``n`` pieces of copy for each product; the same for the same seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What became of a training."""

    folder: Path
    steps: int
    held_out_loss: float
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One training: what, on which pairs, how long, where to; ``name`` tells it from others.

    Attributes:
        trained: What people wrote: a vocabulary is learnt from it alone.
        variants: Of it, learnt from too.
        held_out: What people wrote, to stop by.
    """

    kind: str
    trained: Sequence[Copy]
    variants: Sequence[Copy]
    held_out: Sequence[Copy]
    folder: Path
    schedule: Schedule
    tokens: int
    name: str
    minutes: float
    say: Say
    scenarios: Scenarios = field(default_factory=shipped, repr=False)

    @property
    def work(self) -> Path:
        """Where the state of the unfinished training is."""
        return self.folder / UNFINISHED

    def run(
        self,
        learner: Learner[R],
        rows: Sequence[R],
        held_out: Sequence[R],
        schedule: Schedule | None = None,
        *,
        folder: Path | None = None,
    ) -> Progress:
        """Train on the rows; on the task's own schedule where no other is given."""
        return train(
            learner,
            rows,
            held_out,
            schedule or self.schedule,
            folder=folder or self.work,
            data=self.name,
            minutes=self.minutes,
            say=self.say,
        )

    def facts(self, module: Any, size: Any, progress: Progress) -> dict[str, Any]:
        """What the card says of every kind."""
        return {
            "parameters": sum(p.numel() for p in module.parameters()),
            "size": asdict(size),
            "schedule": asdict(self.schedule),
            "history": progress.history,
        }


def train_generator(
    kind: str,
    copies: Iterable[Copy],
    folder: Path,
    *,
    schedule: Schedule | None = None,
    tokens: int = 5000,
    start: Path | None = None,
    variants: Iterable[Copy] = (),
    scenarios: Scenarios | None = None,
    minutes: float = math.inf,
    say: Say = lambda _: None,
) -> Trained:
    """Train a generator from nothing and write its folder; go on where an earlier call was cut off.

    Args:
        kind: A key of :data:`KINDS`.
        copies: Products with ``text`` or ``references``.
        folder: Where to.
        schedule: How long; the kind's own where none is given.
        tokens: Size of the vocabulary.
        start: A seq2seq on the same data that a GAN goes on from, instead of training one.
        variants: Of the copies (:mod:`handbill.generator.variants`); those of products that are kept to stop
            by are left out.
        scenarios: In whose words it is asked; the shipped ones if not given. Its folder gets a copy of the file.
        minutes: End after so many with what is best by then.
        say: Told how far it is.

    Raises:
        InputError: Too little copy, variants of something else, or the folder holds a generator or something
            else.
    """
    if kind not in KINDS:
        raise InputError(f"kind: {kind!r} is not one of {', '.join(KINDS)}")
    check_folder(folder)
    own = scenarios or shipped()
    given = list(copies)
    pairs = training_pairs(given)
    trained, held_out = split(pairs)
    more, left_out = variant_pairs(variants, given, trained, held_out)
    say(f"{len(trained):,} pieces of copy to learn from, {len(held_out):,} to stop by")
    if more or left_out:
        say(f"{len(more):,} variants; {left_out:,} of copy to stop by are left out")
    task = Task(
        kind=kind,
        trained=trained,
        variants=more,
        held_out=held_out,
        folder=folder,
        schedule=schedule or default_schedule(kind),
        tokens=tokens,
        name=f"{kind}/{tokens}/{digest([*pairs, *more])}{own.prompts}",
        minutes=minutes,
        say=say,
        scenarios=own,
    )
    if kind == "causal":
        found = _train_causal(task)
    else:
        from handbill.generator.classic.kinds import train_classic

        found = train_classic(task, start=start)
    if own.file != SHIPPED:
        shutil.copyfile(own.file, folder / SHIPPED)
    finish(kind, found, pairs=len(trained), variants=len(more), held_out=len(held_out))
    return found


def default_schedule(kind: str, *, epochs: int = 0, seed: int = 0) -> Schedule:
    """How long and fast a kind is trained; ``epochs`` other than 0 changes how long."""
    own, rate = {"causal": (6, 2e-3), "gan": (2, 2e-4)}.get(kind, (8, 2e-3))
    return Schedule(
        epochs=epochs or own,
        learning_rate=rate,
        patience=0 if kind == "gan" else 4,
        seed=seed,
    )


def scenarios_of(name: str) -> Scenarios:
    """The scenarios that a generator was trained with; the shipped ones of any base model.

    Raises:
        InputError: The file in its folder is wrong.
    """
    own = Path(name).expanduser() / SHIPPED
    return read_scenarios(own) if own.is_file() else shipped()


def load_writer(
    name: str,
    *,
    temperature: float = 0.7,
    insist: float = 0.0,
    scenarios: Scenarios | None = None,
) -> Writer:
    """A generator by its folder, or any base model by name, folder or hub id.

    Args:
        name: Folder, name or hub id.
        temperature: Of what it draws.
        insist: How much likelier the values of a product's attributes become while its copy lacks
            them, in nats (:mod:`handbill.generator.mentions`).
        scenarios: In whose words it is asked; :func:`scenarios_of` it if not given.

    Raises:
        InputError: It is neither.
    """
    from handbill.generator.base_models import load_base, resolve_base
    from handbill.generator.causal import CausalWriter, ask_copy

    card = read_card(Path(name).expanduser())
    if card and card["kind"] != "causal":
        from handbill.generator.classic.kinds import load_classic

        return load_classic(Path(name).expanduser(), temperature=temperature, insist=insist)
    model, tokenizer = load_base(resolve_base(name))
    return CausalWriter(
        model,
        tokenizer,
        temperature=temperature,
        insist=insist,
        echoes=card is None,
        ask=partial(ask_copy, scenarios=scenarios or scenarios_of(name)),
    )


def load_paraphraser(name: str, *, temperature: float = 0.7) -> Writer:
    """What writes copy that there is in other words.

    A base model is asked to. A generator that was trained here knows products and no instructions: it writes anew of
    the same facts.

    Args:
        name: Folder, name or hub id, as for :func:`load_writer`.
        temperature: Of what it draws.

    Raises:
        InputError: It is neither a generator nor a base model.
    """
    from handbill.generator.base_models import load_base, resolve_base
    from handbill.generator.causal import CausalWriter, Limits, ask_paraphrase

    if read_card(Path(name).expanduser()):
        return load_writer(name, temperature=temperature)
    model, tokenizer = load_base(resolve_base(name))
    limits = Limits(prompt=384, copy=192)
    return CausalWriter(
        model, tokenizer, limits=limits, temperature=temperature, ask=ask_paraphrase
    )


def check_folder(folder: Path) -> None:
    """Refuse a folder that a generator would be mixed with something else in.

    Raises:
        InputError: It holds a generator, or something that is not an unfinished training.
    """
    if (folder / CARD).is_file():
        raise InputError(f"{folder}: holds a trained generator; remove it or give another folder")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; give an empty folder")
    if folder.is_dir() and any(file.name != UNFINISHED for file in folder.iterdir()):
        raise InputError(f"{folder}: holds other files; give an empty folder")


def finish(kind: str, found: Trained, *, pairs: int, held_out: int, variants: int = 0) -> None:
    """Write the card of what was trained, and remove what its training went on from."""
    card = {
        "format": FORMAT,
        "kind": kind,
        "pairs": pairs,
        "variants": variants,
        "held_out": held_out,
        "steps": found.steps,
        "held_out_loss": round(found.held_out_loss, 4),
        **found.facts,
    }
    (found.folder / CARD).write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n")
    shutil.rmtree(found.folder / UNFINISHED, ignore_errors=True)


def read_card(folder: Path) -> dict[str, Any] | None:
    """A folder's ``generator.json``; None where it has none.

    Raises:
        InputError: It is not one.
    """
    file = folder / CARD
    if not file.is_file():
        return None
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
        if card["format"] != FORMAT or card["kind"] not in KINDS:
            raise InputError(f"{file}: not a generator of the format {FORMAT}")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: damaged; train it again") from error
    return dict(card)


def own_tokenizer(task: Task) -> Any:
    """A vocabulary learnt from pairs: Chinese tokens of at most three characters, Latin ones of eleven letters."""
    from handbill.generator.vocabulary import train_tokenizer

    texts = vocabulary_texts(task.trained, task.scenarios)
    return train_tokenizer(texts, size=task.tokens, rarest=2, longest=11)


def _train_causal(task: Task) -> Trained:
    from handbill.generator.causal import CausalLearner, CausalSize, Limits, new_causal, save_causal

    size = CausalSize()
    tokenizer = own_tokenizer(task)
    model = new_causal(tokenizer, size, seed=task.schedule.seed)
    learner = CausalLearner(model, tokenizer, Limits(), task.scenarios)
    sides = ([*task.trained, *task.variants], task.held_out)
    rows, kept = ([learner.encode(one) for one in side] for side in sides)
    progress = task.run(learner, rows, kept)
    save_causal(model, tokenizer, task.folder)
    return Trained(
        folder=task.folder,
        steps=progress.step,
        held_out_loss=progress.best,
        facts=task.facts(model, size, progress),
    )

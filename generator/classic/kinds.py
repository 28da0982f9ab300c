"""The classic generators as folders: trained, saved, loaded, writing; and the discriminator as a critic."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from handbill.errors import InputError
from handbill.generator.classic.cvae import Cvae, CvaeLearner
from handbill.generator.classic.gan import Gan, GanLearner
from handbill.generator.classic.seq2seq import Pair, Seq2Seq, Seq2SeqLearner, Size
from handbill.generator.copies import Copy
from handbill.generator.echoes import digits_of
from handbill.generator.generators import (
    Task,
    Trained,
    default_schedule,
    own_tokenizer,
    read_card,
)
from handbill.generator.mentions import mentions_of
from handbill.generator.pairs import source_text
from handbill.generator.prompts import plain_ids, turn_end_id
from handbill.generator.training import Learner

WEIGHTS: Final = "model.safetensors"
LATENT: Final = 16
SOURCE_TOKENS: Final = 96
COPY_TOKENS: Final = 128
_JUDGED: Final = 256  # held-out texts that the extra facts are measured on
_TOP_P: Final = 0.9


def train_classic(task: Task, *, start: Path | None) -> Trained:
    """Train one of the kinds; see :func:`handbill.generator.generators.train_generator`.

    Raises:
        InputError: ``start`` is for another kind than gan, or is no seq2seq.
    """
    kind = task.kind
    if start is not None and kind != "gan":
        raise InputError(f"start: only a gan goes on from another generator, not a {kind}")
    if start is not None:
        network, tokenizer = _load_network(start)
    else:
        tokenizer = own_tokenizer(task)
        size = Size(vocabulary=len(tokenizer), latent=LATENT if kind == "cvae" else 0)
        network = _seeded(lambda: new_network("seq2seq" if kind == "gan" else kind, size), task)
    rows = [encode(tokenizer, pair) for pair in (*task.trained, *task.variants)]
    kept = [encode(tokenizer, pair) for pair in task.held_out]
    end = turn_end_id(tokenizer)
    if kind == "gan":
        if start is None:
            first = replace(default_schedule("seq2seq"), seed=task.schedule.seed)
            likelihood = Seq2SeqLearner(network, end=end)
            task.run(likelihood, rows, kept, first, folder=task.work / "likelihood")
        network = _seeded(lambda: Gan(network), task)
    learner = _learner(network, end)
    progress = task.run(learner, rows, kept)
    facts = task.facts(network, network.size, progress)
    if isinstance(learner, CvaeLearner):
        facts["latent"] = learner.latent_use(kept[:_JUDGED])
    if isinstance(learner, GanLearner):
        facts["told_apart"] = round(learner.told_apart(kept[:_JUDGED]), 4)
    save_file(network.state_dict(), task.folder / WEIGHTS)
    tokenizer.save_pretrained(task.folder)
    loss = progress.history[-1][2] if kind == "gan" else progress.best
    return Trained(folder=task.folder, steps=progress.step, held_out_loss=loss, facts=facts)


def new_network(kind: str, size: Size) -> Any:
    """A network with random weights."""
    if kind == "cvae":
        return Cvae(size)
    network = Seq2Seq(size)
    return Gan(network) if kind == "gan" else network


def encode(tokenizer: Any, pair: Copy) -> Pair:
    """A pair as token ids, both cut; the copy with its end mark."""
    copy = plain_ids(tokenizer, pair.text.strip())[: COPY_TOKENS - 1]
    return Pair(_source(tokenizer, pair), (*copy, turn_end_id(tokenizer)))


class ClassicWriter:
    """Writes copy with a classic generator."""

    def __init__(
        self, network: Any, tokenizer: Any, *, temperature: float = 0.7, insist: float = 0.0
    ) -> None:
        self._model = network.eval()
        self._network: Seq2Seq = network if isinstance(network, Seq2Seq) else network.network
        self._tokenizer, self._temperature, self._insist = tokenizer, temperature, insist
        self._digits = digits_of(tokenizer)

    @torch.no_grad()
    def write(self, products: Sequence[Copy], *, n: int = 1, seed: int = 0) -> list[list[str]]:
        """Sample ``n`` pieces of copy for each product (top-p 0.9); ``insist`` is of its attributes."""
        texts: list[list[str]] = []
        at_once = max(1, 64 // n)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for at in range(0, len(products), at_once):
                some = products[at : at + at_once]
                found = self._sample(some, n)
                texts += [found[k * n : (k + 1) * n] for k in range(len(some))]
        return texts

    def _sample(self, products: Sequence[Copy], n: int) -> list[str]:
        tokenizer, end = self._tokenizer, turn_end_id(self._tokenizer)
        read = self._network.read([_source(tokenizer, one) for one in products]).repeated(n)
        latent = None
        if isinstance(self._model, Cvae):
            mean_BZ, spread_BZ = self._model.guessed(read)
            latent = mean_BZ + torch.randn_like(mean_BZ) * (spread_BZ / 2).exp()
        drawn = self._network.sample(
            read,
            end=end,
            longest=COPY_TOKENS,
            temperature=self._temperature,
            top_p=_TOP_P,
            latent_BZ=latent,
            mentions=[
                mentions_of(tokenizer, one, self._insist, [end])
                for one in products
                for _ in range(n)
            ],
            repeatable=self._digits,
        )
        texts = tokenizer.batch_decode(drawn, skip_special_tokens=True)
        return [" ".join(str(text).split()) for text in texts]


def load_classic(folder: Path, *, temperature: float = 0.7, insist: float = 0.0) -> ClassicWriter:
    """Read what :func:`train_classic` wrote.

    Raises:
        InputError: It is damaged, or another kind.
    """
    network, tokenizer, _ = _load(folder)
    return ClassicWriter(network, tokenizer, temperature=temperature, insist=insist)


def load_critic(folder: Path) -> Callable[[str], float]:
    """The discriminator of a GAN: the chance, to it, that people wrote a text.

    Raises:
        InputError: The folder holds no GAN.
    """
    network, tokenizer, kind = _load(folder)
    if kind != "gan":
        raise InputError(f"{folder}: holds a {kind}; only a gan has a discriminator")

    def critic(text: str) -> float:
        ids = plain_ids(tokenizer, text)[:COPY_TOKENS]
        with torch.no_grad():
            return float(torch.sigmoid(network.discriminator([ids]))[0])

    return critic


def _load_network(folder: Path) -> tuple[Seq2Seq, Any]:
    network, tokenizer, kind = _load(folder)
    if kind != "seq2seq":
        raise InputError(f"{folder}: holds a {kind}; a gan goes on from a seq2seq")
    return network, tokenizer


def _load(folder: Path) -> tuple[Any, Any, str]:
    from transformers import AutoTokenizer

    card = read_card(folder)
    if card is None:
        raise InputError(
            f"{folder}: no generator; train one with `handbill generator train --out {folder}`"
        )
    kind = str(card["kind"])
    if kind == "causal":
        return None, None, kind
    try:
        network = new_network(kind, Size(**card["size"]))
        network.load_state_dict(load_file(folder / WEIGHTS), strict=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{folder}: damaged; train it again") from error
    return network.eval(), tokenizer, kind


def _source(tokenizer: Any, copy: Copy) -> tuple[int, ...]:
    return tuple(plain_ids(tokenizer, source_text(copy))[:SOURCE_TOKENS])


def _seeded(make: Callable[[], Any], task: Task) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.schedule.seed)
        return make()


def _learner(network: Any, end: int) -> Learner[Pair]:
    if isinstance(network, Cvae):
        return CvaeLearner(network, end=end)
    if isinstance(network, Gan):
        return GanLearner(network, end=end, longest=COPY_TOKENS)
    return Seq2SeqLearner(network, end=end)

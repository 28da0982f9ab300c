"""The sentiment of a text: the chance that who wrote it is content, in Chinese and English.

A linear model on hashed pieces of text: words and their pairs and triples, and of Chinese one to four
characters in a row, so that "not good" and 不好 are features of their own. Trained by
:mod:`handbill.generator.sentiment_training`; used here with numpy alone.
"""

import json
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from handbill.errors import InputError

N_BUCKETS: Final = 1 << 18
FORMAT: Final = "handbill-sentiment/1"
MAX_CHARS: Final = 4_000
MAX_FILE_BYTES: Final = 8 << 20
_WORDS_IN_ROW: Final = 3
_HAN_IN_ROW: Final = 4
_PIECE: Final = re.compile(
    r"[㐀-鿿]+|[^\W_㐀-鿿]+(?:'[^\W_]+)*|[!?…]+|[\u2600-\u27bf\U0001f300-\U0001faff]"
)
_HAN: Final = re.compile(r"[㐀-鿿]")

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SentimentModel:
    """A trained model.

    Attributes:
        weights: Of each bucket for "content", shape (N_BUCKETS,).
        idf: Inverse document frequency of each bucket, shape (N_BUCKETS,).
        bias: Added to the sum.
        about: What it was trained on: counts only.
    """

    weights: Vector
    idf: Vector
    bias: float
    about: Mapping[str, Any]

    def score(self, text: str) -> float:
        """The chance in (0, 1) that a text is of somebody content; 0.5 where nothing is known."""
        buckets, values = self.vector(text)
        if not len(buckets):
            return 0.5
        logit = float(values @ self.weights[buckets]) + self.bias
        return float(1.0 / (1.0 + np.exp(-logit)))

    def vector(self, text: str) -> tuple[NDArray[np.int64], Vector]:
        """A text as buckets and values of length one."""
        return weighted(buckets_of(text), self.idf)

    def save(self, path: Path) -> None:
        """Write it as safetensors; halves of floats are exact enough for a sign."""
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {
            "weights": self.weights.astype(np.float16),
            "idf": self.idf.astype(np.float16),
            "bias": np.array([self.bias], np.float32),
        }
        metadata = {"format": FORMAT, "about": json.dumps(dict(self.about), ensure_ascii=False)}
        unfinished = path.with_name(f".{path.name}.new")
        save_file(tensors, unfinished, metadata=metadata)
        unfinished.replace(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: There is none, or it is no model of this kind.
        """
        if not path.is_file():
            raise InputError(
                f"{path}: no sentiment model; train one with `handbill sentiment train`"
            )
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InputError(f"{path}: too large for a sentiment model")
        try:
            with safe_open(path, framework="np") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise InputError(f"{path}: not a sentiment model of the format {FORMAT}")
                tensors = {name: file.get_tensor(name) for name in ("weights", "idf", "bias")}
                about = json.loads(metadata["about"])
        except (SafetensorError, KeyError, ValueError, OSError) as error:
            raise InputError(f"{path}: damaged; train it again") from error
        sizes = [tensors[name].shape for name in ("weights", "idf", "bias")]
        if sizes != [(N_BUCKETS,), (N_BUCKETS,), (1,)] or not all(
            np.isfinite(tensor).all() for tensor in tensors.values()
        ):
            raise InputError(f"{path}: damaged; train it again")
        return cls(
            tensors["weights"].astype(np.float32),
            tensors["idf"].astype(np.float32),
            float(tensors["bias"][0]),
            about,
        )


def buckets_of(text: str) -> Counter[int]:
    """How often each bucket occurs in a text.

    >>> len(buckets_of("not good")), len(buckets_of("不好"))
    (3, 3)
    """
    found: Counter[int] = Counter()
    words: list[str] = []
    for piece in _PIECE.findall(_plain(text)):
        if _HAN.match(piece):
            found.update(
                _bucket(piece[i : i + n])
                for n in range(1, _HAN_IN_ROW + 1)
                for i in range(len(piece) - n + 1)
            )
        else:
            words.append(piece[:2] if piece[0] in "!?…" else piece)
    for n in range(1, _WORDS_IN_ROW + 1):
        found.update(_bucket(" ".join(words[i : i + n])) for i in range(len(words) - n + 1))
    return found


def weighted(buckets: Counter[int], idf_V: Vector) -> tuple[NDArray[np.int64], Vector]:
    """Buckets and their values: 1 + log(count), times idf, of Euclidean length 1."""
    indexes = np.fromiter(buckets.keys(), np.int64, len(buckets))
    values = 1.0 + np.log(np.fromiter(buckets.values(), np.float32, len(buckets)))
    values = (values * idf_V[indexes]).astype(np.float32)
    length = np.float32(np.linalg.norm(values) or 1.0)
    return indexes, (values / length).astype(np.float32)


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text[:MAX_CHARS]).lower().replace("’", "'")


def _bucket(piece: str) -> int:
    return zlib.crc32(piece.encode()) % N_BUCKETS

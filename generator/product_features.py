"""What is known of a shop's products, as numbers: words, structured fields, an embedding of the title.

Axes: P products, V words and fields, D the base model's width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from handbill.errors import MissingError
from handbill.generator.base_models import BaseModel
from handbill.generator.behaviour import FIELDS, Product
from handbill.generator.segmentation import segment

Matrix = np.ndarray[Any, np.dtype[np.float32]]
Embed = Callable[[Sequence[str]], Matrix]

_EMBEDDINGS: Final = "model.embed_tokens.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductFeatures:
    """Features of products; a row's parts have length 1 each, or 0 where nothing is known.

    Attributes:
        ids: Product to its row.
        words: TF-IDF of the words of title, category, brand and description, sparse (P, V).
        vocabulary: Word to its column.
        fields: Category, brand and price band, one column for each value, sparse (P, F).
        embeddings: Mean of the base model's embeddings of the title's tokens, less the mean over
            products; no columns where there is no base model, shape (P, D).
    """

    ids: Mapping[str, int]
    words: Any
    vocabulary: Mapping[str, int]
    fields: Any
    embeddings: Matrix

    def likeness(self, rows: Sequence[int]) -> Matrix:
        """Cosine of every product with each of some, mean over the three parts, shape (P, some)."""
        parts = [part @ part[list(rows)].T for part in (self.words, self.fields)]
        dense = [part.toarray() for part in parts]
        if self.embeddings.shape[1]:
            dense.append(self.embeddings @ self.embeddings[list(rows)].T)
        return np.asarray(sum(dense) / len(dense), np.float32)

    def holding(self, words: Sequence[str]) -> Matrix:
        """How much of each product's text is these words: sum of their TF-IDF, shape (P,)."""
        columns = [self.vocabulary[word] for word in words if word in self.vocabulary]
        return np.asarray(self.words[:, columns].sum(axis=1), np.float32).reshape(-1)


def product_features(products: Sequence[Product], *, embed: Embed | None = None) -> ProductFeatures:
    """Features of a shop's products.

    Args:
        products: All of them; words that many have say little.
        embed: Turns titles into vectors, :func:`base_embeddings`; none leaves that part out.

    Raises:
        MissingError: scikit-learn is not installed.
    """
    try:
        from sklearn.feature_extraction import DictVectorizer
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.preprocessing import normalize
    except ImportError as error:
        raise MissingError(
            "scikit-learn is not installed; `pip install 'handbill[recommend]'` adds it"
        ) from error
    texts = TfidfVectorizer(analyzer=_words, sublinear_tf=True, dtype=np.float32)
    words = texts.fit_transform(products)
    named = [
        {**{name: getattr(product, name) for name in FIELDS}, "price": product.price_band}
        for product in products
    ]
    known = [{name: value for name, value in fields.items() if value} for fields in named]
    fields = normalize(DictVectorizer(dtype=np.float32).fit_transform(known))
    vectors_PD = np.zeros((len(products), 0), np.float32)
    if embed is not None:
        vectors_PD = embed([product.title for product in products])
        vectors_PD = normalize(vectors_PD - vectors_PD.mean(axis=0))
    return ProductFeatures(
        ids={product.id: row for row, product in enumerate(products)},
        words=words,
        vocabulary=texts.vocabulary_,
        fields=fields,
        embeddings=vectors_PD,
    )


def base_embeddings(base: BaseModel) -> Embed:
    """Embed texts with a base model's own token embeddings; the model itself is not loaded.

    Returns:
        A function of texts to vectors, shape (texts, D); zeros for a text without a token.
    """
    from safetensors import safe_open
    from transformers import AutoTokenizer

    from handbill.generator.prompts import plain_ids

    tokenizer = AutoTokenizer.from_pretrained(base.path, local_files_only=True)

    def table() -> Matrix:
        for file in sorted(base.path.glob("*.safetensors")):
            with safe_open(file, framework="pt") as weights:  # numpy has no bfloat16
                if _EMBEDDINGS in weights.keys():  # noqa: SIM118 - safe_open is no mapping
                    rows: Matrix = weights.get_tensor(_EMBEDDINGS).float().numpy()
                    return rows
        raise MissingError(f"{base.path}: holds no {_EMBEDDINGS}; this base model embeds no titles")

    def embed(texts: Sequence[str]) -> Matrix:
        rows_VD = table()
        vectors = np.zeros((len(texts), rows_VD.shape[1]), np.float32)
        for row, text in enumerate(texts):
            if ids := plain_ids(tokenizer, text):
                vectors[row] = rows_VD[ids].mean(axis=0)
        return vectors

    return embed


def _words(product: Product) -> list[str]:
    return segment(f"{product.title} {product.category} {product.brand} {product.description}")

"""What a generator learns from: products with the copy people wrote for them.

A generator must say what it is given and nothing else, and people do not always: of a product's attributes they
leave some out and name others. So each pair is **aligned** before it is learnt from: the attributes asked for are
those the copy states. A generator that never saw an attribute left out does not leave it out.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from handbill.errors import InputError
from handbill.generator.copies import Copy
from handbill.generator.fidelity import Vocabulary, stated_values, vocabulary
from handbill.generator.prompts import CopyRequest, Example
from handbill.generator.scenarios import Scenarios, shipped

HELD_OUT: Final = 13  # of 256: one product in twenty
_FRAME: Final = "user\nassistant\n"


def asked(copy: Copy) -> CopyRequest:
    """The request with the product's attributes in its description, name and value by turns."""
    return replace(copy.request, description=copy.product.description.strip())


def example(copy: Copy) -> Example:
    """A pair as a language model learns it; nobody's in particular."""
    return Example(user="", item=copy.id, request=asked(copy), text=copy.text)


def source_text(copy: Copy) -> str:
    """All that is known, in one line: what a model that has no prompt reads."""
    request = asked(copy)
    known = (request.title, request.category, request.brand, request.price, request.description)
    wanted = (request.shopper, request.tone)
    return " | ".join(" ".join(part.split()) for part in (*known, *wanted) if part)


def vocabulary_texts(pairs: Sequence[Copy], scenarios: Scenarios | None = None) -> list[str]:
    """What a tokenizer is learnt from: fields, copy, and the words of the prompts as often as they occur."""
    prompts = [*(scenarios or shipped()).texts(), _FRAME]
    return [
        *(source_text(pair) for pair in pairs),
        *(pair.text for pair in pairs),
        *(prompts[i % len(prompts)] for i in range(len(pairs))),
    ]


def digest(pairs: Iterable[Copy]) -> str:
    """Tells one set of pairs from another."""
    whole = hashlib.sha256()
    for pair in pairs:
        whole.update(f"{source_text(pair)}\0{pair.text}\0".encode("utf-8", "replace"))
    return whole.hexdigest()[:16]


def training_pairs(copies: Iterable[Copy]) -> list[Copy]:
    """One pair for each text and reference of each product, aligned.

    Raises:
        InputError: There is no text to learn from.
    """
    given = list(copies)
    known = vocabulary(given)
    pairs = [
        aligned(replace(copy, text=text, references=(), candidates=()), known)
        for copy in given
        for text in dict.fromkeys((*copy.references, copy.text))
        if text
    ]
    if not pairs:
        raise InputError("no copy to learn from: give `text` or `references` (docs/evaluation.md)")
    return pairs


def variant_pairs(
    variants: Iterable[Copy],
    copies: Iterable[Copy],
    trained: Sequence[Copy],
    held_out: Sequence[Copy],
) -> tuple[list[Copy], int]:
    """Variants as pairs to learn from, aligned; and how many were left out, of products kept to stop by.

    Args:
        variants: One for each text, named as the product.
        copies: What they are variants of: which values attributes have is known from it.
        trained: The pairs of the products that are learnt from.
        held_out: The pairs of the others: nothing written after them may be learnt from.

    Raises:
        InputError: A variant is of a product that is on neither side.
    """
    given = list(variants)
    if not given:
        return [], 0
    known = vocabulary(copies)
    learnt, kept = ({pair.id for pair in side} for side in (trained, held_out))
    if others := [one.id for one in given if one.id not in learnt | kept]:
        raise InputError(f"variants of {others[0]!r}, which is not in the copy to learn from")
    pairs = [aligned(one, known) for one in given if one.id in learnt - kept]
    return pairs, len(given) - len(pairs)


def aligned(copy: Copy, known: Vocabulary) -> Copy:
    """A pair whose attributes are those that its text states, also ones that nobody gave.

    >>> one = Copy(id="1", text="红色羊毛外套", request=CopyRequest(title="外套"),
    ...            attributes=(("材质", "棉"), ("颜色", "红色")))
    >>> aligned(one, {"材质": frozenset({"羊毛"})}).attributes
    (('颜色', '红色'), ('材质', '羊毛'))
    """
    return replace(copy, attributes=stated_values(copy, copy.text, known))


def split(pairs: Sequence[Copy]) -> tuple[list[Copy], list[Copy]]:
    """To train on, and one product in twenty to stop by; a product is on one side.

    Raises:
        InputError: One side is empty.
    """
    sides: tuple[list[Copy], list[Copy]] = ([], [])
    for pair in pairs:
        side = hashlib.sha256(f"generator/{pair.id}".encode("utf-8", "replace")).digest()[0]
        sides[side < HELD_OUT].append(pair)
    if not all(sides):
        raise InputError(
            f"{len(pairs)} pieces of copy are too few: one product in twenty is kept to stop by"
        )
    return sides

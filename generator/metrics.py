"""How good copy is, in numbers: ROUGE-L, distinct-n."""

import re
from collections.abc import Iterable, Sequence

from rapidfuzz.distance import LCSseq

# A word, or one character of a script written without spaces (Han, kana).
_TOKEN = re.compile(r"[぀-ヿ㐀-鿿]|[^\W_]+(?:['’][^\W_]+)?")


def words(text: str) -> list[str]:
    """Lower-case words; Chinese and Japanese text by character.

    >>> words("It's 白色 tea.")
    ["it's", '白', '色', 'tea']
    """
    return _TOKEN.findall(text.lower())


def rouge_l(candidate: str, reference: str) -> float:
    """ROUGE-L F1: longest common subsequence of words (Lin 2004, section 3.1, beta = 1).

    >>> round(rouge_l("a warm green tea", "a green tea"), 3)
    0.857
    """
    ours, theirs = words(candidate), words(reference)
    if not ours or not theirs:
        return 0.0
    common = LCSseq.similarity(ours, theirs)
    return 2.0 * common / (len(ours) + len(theirs))


def distinct_n(texts: Iterable[str], n: int = 2) -> float:
    """Distinct n-grams over all n-grams of all texts (Li et al. 2016, arXiv:1510.03055).

    >>> distinct_n(["a b a b"], 2)
    0.6666666666666666
    """
    grams: list[Sequence[str]] = []
    for text in texts:
        tokens = words(text)
        grams += [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0

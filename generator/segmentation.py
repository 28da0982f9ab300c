"""Words of a text: Chinese is cut into words by a dictionary, other scripts at spaces and marks."""

import re
from typing import Final

_PIECES: Final = re.compile(r"[㐀-鿿]+|[^\W_㐀-鿿]+(?:['’][^\W_]+)?")
_HAN: Final = re.compile(r"[㐀-鿿]")
_LETTER: Final = re.compile(r"[^\W\d_]")


def segment(text: str) -> list[str]:
    """Lower-case words of a text, marks and white space left out.

    >>> segment("这款白色牛仔外套 fits well, isn't it?")
    ['这', '款', '白色', '牛仔', '外套', 'fits', 'well', "isn't", 'it']
    """
    text = text.lower()
    return [text[start:end] for start, end in word_spans(text)]


def word_spans(text: str) -> list[tuple[int, int]]:
    """Where the words of a text begin and end.

    >>> word_spans("白色外套 fits")
    [(0, 2), (2, 4), (5, 9)]
    """
    spans: list[tuple[int, int]] = []
    for piece in _PIECES.finditer(text):
        at, end = piece.span()
        if not _HAN.match(piece[0]):
            spans.append((at, end))
            continue
        import rjieba  # its dictionary takes a moment to load

        for word in rjieba.cut(piece[0]):
            spans.append((at, at + len(word)))
            at += len(word)
    return spans


def han_share(text: str) -> float:
    """Share of the letters that are Chinese characters; 0 where there is no letter.

    >>> han_share("白色 shirt")
    0.2857142857142857
    """
    letters = len(_LETTER.findall(text))
    return len(_HAN.findall(text)) / letters if letters else 0.0

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
    words: list[str] = []
    for piece in _PIECES.findall(text.lower()):
        if _HAN.match(piece):
            import rjieba  # its dictionary takes a moment to load

            words += rjieba.cut(piece)
        else:
            words.append(piece)
    return words


def han_share(text: str) -> float:
    """Share of the letters that are Chinese characters; 0 where there is no letter.

    >>> han_share("白色 shirt")
    0.2857142857142857
    """
    letters = len(_LETTER.findall(text))
    return len(_HAN.findall(text)) / letters if letters else 0.0

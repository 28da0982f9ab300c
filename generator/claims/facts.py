"""Facts in copy that the product's fields do not hold: prices, discounts, quantities, certificates.

Numbers are compared by value and kind: 五折 is 50 % off, ½ is 50 %, 1,000 is 1000, 500 ml is 0.5 l,
买一送一 is buy one get one free.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from handbill.generator.claims.folding import Folded

FactKind = Literal["price", "percent", "quantity", "offer", "certificate"]

# A unit's dimension, and how many of the dimension's base unit it is.
_UNITS: Final[dict[str, tuple[str, float]]] = {
    name: (dimension, factor)
    for dimension, factor, names in (
        ("volume", 1, "ml 毫升 millilitre millilitres milliliter milliliters cc"),
        ("volume", 1000, "l 升 litre litres liter liters"),
        ("volume", 29.5735, "oz ounce ounces 盎司"),
        ("mass", 1, "g 克 gram grams gramme"),
        ("mass", 1000, "kg 公斤 千克 kilo kilos kilogram kilograms"),
        ("mass", 500, "斤"),
        ("mass", 50, "两"),
        ("mass", 453.592, "lb lbs pounds"),
        ("length", 1, "mm 毫米"),
        ("length", 10, "cm 厘米 公分 centimetre centimetres centimeter centimeters"),
        ("length", 1000, "m 米 metre metres meter meters"),
        ("length", 25.4, "inch inches 英寸 寸"),
        ("length", 304.8, "ft foot feet 英尺"),
        ("power", 1, "w 瓦 watt watts"),
        ("power", 1000, "kw 千瓦"),
        ("charge", 1, "mah 毫安 毫安时"),
        ("voltage", 1, "v 伏 volt volts"),
        ("storage", 1, "gb"),
        ("storage", 1000, "tb"),
        ("time", 1, "second seconds 秒"),
        ("time", 60, "min mins minute minutes 分钟"),
        ("time", 3600, "h hr hrs hour hours 小时"),
        ("time", 86400, "day days 天"),
        ("time", 604800, "week weeks 周"),
        ("time", 2592000, "month months 个月"),
        ("time", 31536000, "year years 年"),
        ("temperature", 1, "°c ℃ 度"),
        ("count", 1, "pieces pcs pack packs cups servings pages layers stitches colours colors sizes "
                     "片 支 粒 枚 页 层 色 款 档 针 只装 件套 片装 支装 个装"),
        ("times", 1, "times 倍 x"),
    )
    for name in names.split()
}  # fmt: skip
_HAN_DIGITS: Final = {c: i for i, c in enumerate("零一二三四五六七八九")} | {
    "两": 2,
    "半": 0.5,
    "〇": 0,
}
_WORDS: Final = {
    "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50,
    "hundred": 100, "half": 0.5,
}  # fmt: skip
_WORD: Final = "|".join(_WORDS)
_UNIT: Final = "|".join(sorted(map(re.escape, _UNITS), key=len, reverse=True))
# Counted things in Chinese numerals are figures of speech more often than facts (一天, 两层).
_HAN_UNIT: Final = "毫升|公斤|千克|厘米|毫米|小时|分钟|升|克|斤|米|寸|瓦|倍"
_NUMBER: Final = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
_HAN_NUMBER: Final = r"[零〇一二两三四五六七八九十百千半]+"
_CURRENCY: Final = r"(?:rmb|cny|usd|eur|gbp|us\$|[$£€¥₤])"
_MONEY: Final = r"元(?![素气旦宵件宝])|块钱|块(?=$|[,.!?;，。！？；])|dollars?|euros?|pounds? sterling|usd|eur|gbp|rmb|cny|yuan|quid|cents?"

_FACT: Final = re.compile(
    rf"(?P<discount>(?<![\d.])(?P<d>\d(?:\.\d|\d)?|[一二三四五六七八九][一二三四五六七八九]?)折(?!叠|痕|线|成|好|纸|射|返|算|磨|腾|伞|页|屏|门))"
    rf"|(?P<percent>(?<![a-z\d.])(?P<p>{_NUMBER}) ?(?:%|percent|per cent)|百分之(?P<hp>{_HAN_NUMBER}|{_NUMBER}))"
    rf"|(?P<half>\bhalf[- ](?:price|off)\b|\b(?:1⁄2|1/2) (?:price|off)\b|半价)"
    rf"|(?P<third>\b(?:one |a )?third off\b)"
    rf"|(?P<offer>买(?P<b>{_HAN_NUMBER}|\d+)(?:赠|送)(?P<f>{_HAN_NUMBER}|\d+)|\bbuy (?P<wb>\d|{_WORD}),? get (?P<wf>\d|{_WORD})\b(?: free)?|\bbogo\b|\b(?:2|two) for (?:1|one|the price of (?:1|one))\b)"
    rf"|(?P<price>{_CURRENCY} ?(?P<c>{_NUMBER})|(?<![a-z\d.])(?P<m>{_NUMBER}|{_HAN_NUMBER}) ?(?:{_MONEY})(?![a-z]))"
    rf"|(?P<quantity>(?<![a-z\d.])(?P<q>{_NUMBER})[ -]?(?P<u>{_UNIT})(?![a-z])"
    rf"|(?P<hq>{_HAN_NUMBER})(?P<hu>{_HAN_UNIT})"
    rf"|\b(?P<wq>{_WORD})[ -](?P<wu>{_UNIT})(?![a-z]))",
    re.A,
)  # fmt: skip
_BARE: Final = re.compile(_NUMBER)
_CERTIFICATES: Final[dict[str, str]] = {
    "iso": r"(?<![a-z])iso[ -]?\d{4,5}",
    "fda": r"\bfda\b",
    "ce": r"\bce[ -](?:marked|certified|approved|mark)\b|ce认证",
    "3c": r"(?<![a-z0-9])(?:3c|ccc)(?:认证|标志|[ -]?certified|[ -]?mark)",
    "ul": r"\bul[ -](?:listed|certified)\b|ul认证",
    "rohs": r"\brohs\b",
    "gots": r"\bgots\b",
    "oeko-tex": r"\boeko[ -]?tex\b",
    "fsc": r"\bfsc\b",
    "organic": r"\borganic(?:ally)?\b|有机(?!会|玻璃|硅)",
    "fairtrade": r"\bfair[ -]?trade\b",
    "halal": r"\bhalal\b|清真",
    "kosher": r"\bkosher\b",
    "vegan": r"\bvegan\b|纯素",
    "energy": r"\benergy[ -]star\b|[一二]级能效",
    "patent": r"\bpatent(?:ed|s)?\b(?! leather)|专利",
    "green food": r"绿色食品",
    "origin": r"地理标志",
    "heritage": r"非物质文化遗产|非遗",
    "gmp": r"\bgmp\b",
    "haccp": r"\bhaccp\b",
    "sgs": r"\bsgs\b",
    "bpa": r"\bbpa[ -]?free\b|不含双酚a",
    "waterproof": r"\bip[x6]\d\b",
}
_CERTIFICATE: Final = re.compile(
    "|".join(f"(?P<c{i}>{pattern})" for i, pattern in enumerate(_CERTIFICATES.values())), re.A
)
_HINT: Final = re.compile(
    r"[\d折半%½买零〇一二两三四五六七八九十百]|\b(?:bogo|third|" + _WORD + r")\b"
)


@dataclass(frozen=True, slots=True)
class Fact:
    """A fact a text states.

    Attributes:
        value: What it is compared by; of a quantity with its dimension.
        start: In folded text.
    """

    kind: FactKind
    value: tuple[str, float]
    start: int
    end: int


def find_facts(folded: Folded) -> Iterator[Fact]:
    """The facts of a folded text."""
    text = folded.text
    if _HINT.search(text):
        for found in _FACT.finditer(text):
            kind, value = _value(found)
            if value is not None:
                yield Fact(kind, value, *found.span())
    names = tuple(_CERTIFICATES)
    for found in _CERTIFICATE.finditer(text):
        name = names[int((found.lastgroup or "c0")[1:])]
        # Of standards with a number, the number too.
        number = re.sub(r"\D", "", found[0]) if name == "iso" else ""
        yield Fact("certificate", (name, float(number or 0)), *found.span())


class Known:
    """What the product's fields hold.

    Args:
        fields: Their folded text.
        prices: Folded text in which every number is a price.
    """

    def __init__(self, fields: Folded, prices: Folded) -> None:
        self._values = {(fact.kind, *fact.value) for fact in find_facts(fields)}
        self._numbers = {_number(found[0]) for found in _BARE.finditer(fields.text)}
        self._prices = {_number(found[0]) for found in _BARE.finditer(prices.text)}
        # "29 pounds" may be money.
        pound = _UNITS["pounds"][1]
        self._values |= {("quantity", "mass", price * pound) for price in self._prices}

    def holds(self, fact: Fact) -> bool:
        """Whether a fact is known: the same value, or its number without any unit."""
        if any(_same(fact, known) for known in self._values):
            return True
        if fact.kind == "price":
            return fact.value[1] in self._prices
        return (
            fact.kind == "quantity" and fact.value[0] == "count" and fact.value[1] in self._numbers
        )


def _same(fact: Fact, known: tuple[str, str, float]) -> bool:
    kind, name, value = known
    near = abs(value - fact.value[1]) <= 0.005 * abs(value)  # a rounded conversion of units
    return kind == fact.kind and name == fact.value[0] and near


def _value(found: re.Match[str]) -> tuple[FactKind, tuple[str, float] | None]:
    groups = found.groupdict()
    if groups["quantity"]:
        return "quantity", _quantity(groups)
    if groups["price"]:
        amount = groups["c"] or groups["m"]
        # 一块 and 半块 are pieces.
        return "price", ("", _number(amount)) if amount not in {"一", "半"} else None
    if groups["offer"]:
        return "offer", _offer(groups)
    return "percent", ("", _percent(groups))


def _quantity(groups: dict[str, str]) -> tuple[str, float] | None:
    number = groups["q"] or groups["hq"] or groups["wq"]
    unit = groups["u"] or groups["hu"] or groups["wu"]
    # Figures of speech more often than facts.
    if number in {"一", "半", "one", "half"} or (groups["wq"] and unit.startswith(("min", "sec"))):
        return None
    dimension, factor = _UNITS[unit]
    return dimension, _number(number) * factor


def _offer(groups: dict[str, str]) -> tuple[str, float]:
    bought, free = groups["b"] or groups["wb"] or "1", groups["f"] or groups["wf"] or "1"
    return f"buy {_number(bought):g}", _number(free)


def _percent(groups: dict[str, str]) -> float:
    if groups["discount"]:
        return 100 - _tenths(groups["d"])
    if groups["percent"]:
        return _number(groups["p"] or groups["hp"])
    return 50.0 if groups["half"] else 33.0


def _tenths(text: str) -> float:
    """What is paid, in percent: 8 -> 80, 85 -> 85, 8.5 -> 85, 八五 -> 85."""
    digits = "".join(str(_HAN_DIGITS.get(char, char)) for char in text)
    value = float(digits)
    return value * 10 if value < 10 else value


def _number(text: str) -> float:
    """The value of a number in digits, Chinese numerals or an English word."""
    if text in _WORDS:
        return float(_WORDS[text])
    if text[0].isdigit():
        return float(text.replace(",", ""))
    total, current = 0.0, 0.0
    for char in text:
        if char in "十百千":
            total += (current or 1) * {"十": 10, "百": 100, "千": 1000}[char]
            current = 0.0
        elif char == "半" and current + total:
            current += 0.5
        else:
            current = current * 10 + _HAN_DIGITS[char]
    return total + current

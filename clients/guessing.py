"""Guesses what each column of a shop's tables is, from its name and a sample of its values.

A guess is a role, a confidence in [0, 1] and the reasons in words; none of them holds a value.
"""

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from handbill.clients.cleaning import EVENT_KINDS, MAX_ID_CHARS, RATING, month_of
from handbill.clients.descriptions import KEYS, LANGUAGE
from handbill.clients.tables import NESTED, Record
from handbill.generator.segmentation import han_share

# Words in the names of columns, as shops, exports and public data sets write them; the first are the surest.
NAMES: Final[dict[str, tuple[str, ...]]] = {
    "user": (
        *("user_id", "shopper_id", "customer_id", "reviewer_id", "member_id", "buyer_id"),
        *(
            "userid",
            "uid",
            "user",
            "shopper",
            "customer",
            "reviewer",
            "member",
            "buyer",
            "client_id",
        ),
        *(
            "用户id",
            "会员id",
            "顾客id",
            "客户id",
            "买家id",
            "用户编号",
            "会员编号",
            "用户",
            "会员",
            "买家",
            "客户",
        ),
    ),
    "item": (
        *("item_id", "product_id", "goods_id", "sku_id", "asin", "sku", "spu", "article_id"),
        *("itemid", "productid", "item", "product", "goods", "parent_asin", "isbn"),
        *("商品id", "商品编号", "货号", "产品id", "产品编号", "宝贝id"),
    ),
    "text": (
        *(
            "copy",
            "ad_copy",
            "ad_text",
            "explanation",
            "reason",
            "review_text",
            "review",
            "reviewtext",
        ),
        *("review_body", "comment", "content", "text", "body", "message"),
        *(
            "文案",
            "推荐理由",
            "广告语",
            "推荐语",
            "评论内容",
            "评论",
            "评价",
            "评价内容",
            "内容",
            "正文",
        ),
    ),
    "title": (
        *("title", "product_title", "product_name", "item_name", "item_title", "name", "product"),
        *("goods_name", "summary", "headline"),
        *("标题", "商品名称", "商品名", "商品标题", "产品名称", "品名", "名称", "宝贝标题"),
    ),
    "description": (
        *("description", "product_description", "item_description", "item_summary", "desc"),
        *("details", "about", "features", "feature", "attributes"),
        *("描述", "商品描述", "详情", "商品详情", "介绍", "简介", "卖点"),
    ),
    "category": (
        *(
            "category",
            "category_name",
            "class_name",
            "department",
            "product_type",
            "type",
            "categories",
        ),
        *("类目", "品类", "分类", "类别", "类型"),
    ),
    "brand": ("brand", "brand_name", "manufacturer", "vendor", "maker", "品牌", "品牌名", "厂商"),
    "price": (
        *("price", "unit_price", "sale_price", "list_price", "amount", "cost"),
        *("价格", "单价", "售价", "现价", "金额"),
    ),
    "shopper": (
        *(
            "interests",
            "user_summary",
            "profile",
            "persona",
            "user_profile",
            "preferences",
            "likes",
        ),
        *("tags", "兴趣", "兴趣标签", "画像", "用户画像", "偏好", "标签"),
    ),
    "tone": ("tone", "style", "mood", "语气", "风格"),
    "language": ("language", "lang", "locale", "语言", "语种"),
    "time": (
        *(
            "time",
            "timestamp",
            "datetime",
            "created_at",
            "event_time",
            "date",
            "ts",
            "unixreviewtime",
        ),
        *("review_time", "order_time", "时间", "日期", "创建时间", "下单时间", "评论时间"),
    ),
    "kind": (
        *(
            "action",
            "event",
            "event_type",
            "behavior",
            "behaviour",
            "behavior_type",
            "kind",
            "type",
        ),
        *("行为", "行为类型", "事件", "事件类型", "动作"),
    ),
    "search": (
        *("query", "search_term", "search_query", "search", "search_text", "keyword", "keywords"),
        *("搜索词", "搜索", "搜索内容", "查询词", "关键词"),
    ),
    "rating": (
        *("rating", "stars", "star_rating", "score", "overall", "rate"),
        *("评分", "星级", "打分", "分数"),
    ),
}
# Copy under such a name is the shop's own; reviews and comments are shoppers' words and need noise.
SHOPS_OWN: Final = frozenset({"copy", "ad_copy", "ad_text", "文案", "广告语", "推荐语", "推荐理由"})
SURE: Final = 0.5  # below it a guess is written as a comment only
# Values alone never make an id: whose rows are one shopper's is what privacy is counted by.
_TOLD_BY_VALUES: Final = frozenset({"text", "kind"})
_LONG: Final = 25  # characters that copy and descriptions mostly have, ids, names and kinds not
_ID: Final = re.compile(r"[\w.:@#/+-]{1,64}")
# Narrower than what a price column may hold: "Coat 4" is no amount of Coats.
_AMOUNT: Final = re.compile(
    r"(?:[^\w\s.,+-]|[A-Z]{3})?\s?\d+(?:[.,]\d+)*\s?(?:[^\w\s.,+-]|[A-Z]{3}|元|块)?"
)
_SPLIT: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[^0-9a-zA-Z\u4e00-\u9fff]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """What a sample says of one column; shares are of the sampled records, or of the filled cells.

    Attributes:
        filled: Share of records with a value.
        different: Different values over filled cells.
        chars: Median length.
        spaced: Share of values with white space or a mark between words, or in Chinese.
        ids, prices, times, kinds, ratings, languages: Share of values that could be one.
        han: Mean share of Chinese among letters.
    """

    name: str
    filled: float = 0.0
    different: float = 0.0
    chars: float = 0.0
    spaced: float = 0.0
    ids: float = 0.0
    prices: float = 0.0
    times: float = 0.0
    kinds: float = 0.0
    ratings: float = 0.0
    languages: float = 0.0
    han: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Guess:
    """What one column is taken for."""

    column: str
    role: str
    confidence: float
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Facts about the columns of one table, and how many records they are from."""

    columns: Mapping[str, Column] = field(repr=False)
    records: int
    broken: int


def look_at(columns: Sequence[str], records: Iterable[Record]) -> Sample:
    """Learn about columns from some records."""
    values: dict[str, list[str]] = {name: [] for name in columns}
    read = broken = 0
    for record in records:
        read += 1
        broken += bool(record.problem)
        for name, cells in values.items():
            value = record.values.get(name, "").strip()
            if value and value != NESTED:
                cells.append(value)
    found = {name: _column(name, cells, read - broken) for name, cells in values.items()}
    return Sample(columns=found, records=read, broken=broken)


def _column(name: str, cells: list[str], records: int) -> Column:
    n = len(cells)
    if not n:
        return Column(name=name)

    def share(count: int) -> float:
        return count / n

    return Column(
        name=name,
        filled=n / max(records, 1),
        different=share(len(set(cells))),
        chars=statistics.median(map(len, cells)),
        spaced=share(sum(_is_prose(cell) for cell in cells)),
        ids=share(sum(len(cell) <= MAX_ID_CHARS and bool(_ID.fullmatch(cell)) for cell in cells)),
        prices=share(sum(bool(_AMOUNT.fullmatch(cell)) for cell in cells)),
        times=share(sum(_is_dated(cell) for cell in cells)),
        kinds=share(sum(cell.lower() in EVENT_KINDS for cell in cells)),
        ratings=share(sum(bool(RATING.fullmatch(cell)) for cell in cells)),
        languages=share(sum(len(cell) <= 11 and bool(LANGUAGE.fullmatch(cell)) for cell in cells)),
        han=statistics.fmean(map(han_share, cells)),
    )


def _is_prose(text: str) -> bool:
    return len(text.split()) > 2 or (len(text) >= 6 and han_share(text) > 0.5)


def _is_dated(text: str) -> bool:
    """A time that is not just any number."""
    month = month_of(text)
    return bool(month) and "1995" <= month[:4] <= "2100"


def name_score(role: str, column: str) -> float:
    """How much the name of a column speaks for a role, from 0 to 1."""
    plain = "_".join(part.lower() for part in _SPLIT.split(column) if part)
    words = NAMES[role]
    if plain in words:
        return 1.0 - 0.3 * words.index(plain) / len(words)
    squeezed = plain.replace("_", "")
    if squeezed in {word.replace("_", "") for word in words}:
        return 0.85
    parts = set(plain.split("_"))
    if any(
        word in parts or (len(word) > 1 and not word.isascii() and word in plain) for word in words
    ):
        return 0.5
    return 0.0


def guesses(sample: Sample) -> list[Guess]:
    """For every column and role with something for it, a guess; the surest first."""
    found = []
    for column in sample.columns.values():
        if not column.filled:
            continue
        for role in NAMES:
            named, fits, why = name_score(role, column.name), *_fit(role, column)
            if not fits or (not named and (role not in _TOLD_BY_VALUES or fits < 0.8)):
                continue
            confidence = fits * (0.25 + 0.75 * named) if named else 0.3 * fits
            if confidence > 0.1:
                words = [*(["its name"] if named else []), *why, f"{column.filled:.0%} filled"]
                found.append(
                    Guess(
                        column=column.name,
                        role=role,
                        confidence=round(min(confidence, 0.99), 2),
                        why=", ".join(words),
                    )
                )
    return sorted(found, key=lambda guess: -guess.confidence)


def _fit(role: str, c: Column) -> tuple[float, list[str]]:
    """How well the values suit a role, from 0 (not at all) to 1, and why."""
    long = min(1.0, c.chars / _LONG)
    is_number = c.prices > 0.9 or c.times > 0.9
    about = f"{c.chars:g} characters in the middle"
    label = 0.0 if c.chars > 60 or is_number else 1.0, about
    title = 0.0 if is_number else c.filled * (1.0 if 2 <= c.chars <= 150 else 0.4), about
    said = max(0.3, long) * (0.6 + 0.4 * c.spaced), about
    ids = c.ids * c.filled * (0.3 if c.chars > 2 * _LONG else 1.0), f"{c.ids:.0%} look like ids"
    fits, why = {
        "kind": (c.kinds, f"{c.kinds:.0%} kinds of event"),
        "rating": (c.ratings, f"{c.ratings:.0%} numbers"),
        "price": (c.prices if c.times < 0.5 else 0.0, f"{c.prices:.0%} prices"),
        "time": (c.times, f"{c.times:.0%} times"),
        "language": (
            c.languages if c.different <= 0.5 else 0.0,
            f"{c.languages:.0%} language tags",
        ),
        "user": ids,
        "item": ids,
        "text": (long * (0.4 + 0.6 * c.spaced) * c.filled, f"{about}, {c.different:.0%} different"),
        "description": said,
        "shopper": said,
        "title": title,
    }.get(role, label)
    return fits, [why]


def section_scores(found: Sequence[Guess], sample: Sample) -> dict[str, float]:
    """How well a table would be each section of a description, from 0 to 1."""
    best: dict[str, float] = {}
    for guess in found:
        best[guess.role] = max(best.get(guess.role, 0.0), guess.confidence)

    def of(role: str) -> float:
        return best.get(role, 0.0)

    def unique(role: str) -> float:
        return max(
            (sample.columns[g.column].different for g in found if g.role == role), default=0.0
        )

    own = max(
        (g.confidence for g in found if g.role == "text" and g.column in SHOPS_OWN), default=0
    )
    facts = max(of("title"), of("description"), of("price"), of("brand"))
    return {
        "rows": min(of("user"), of("item"), of("text")),
        "events": min(of("user"), of("item"), of("kind")),
        "products": min(of("item"), facts) * (unique("item") > 0.9) * (1 - 0.9 * of("user")),
        "shoppers": min(of("user"), of("shopper"))
        * (unique("user") > 0.9)
        * (1 - 0.9 * of("item")),
        "published": min(own, of("title")) * (1 - of("user")),
    }


def assign(found: Sequence[Guess], section: str) -> dict[str, Guess]:
    """One column for each role of a section, the surest first; needed roles before others."""
    must, may = KEYS[section]
    taken: dict[str, Guess] = {}
    for roles in (must, may):
        for guess in found:
            used = {other.column for other in taken.values()}
            if guess.role in roles and guess.role not in taken and guess.column not in used:
                taken[guess.role] = guess
    return taken

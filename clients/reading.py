"""One pass over a shop's tables: what becomes of every record, one at a time.

Every record of every table comes out exactly once: usable, or a reject with its place and reason.
Memory does not grow with the tables: what has to be remembered is in a :class:`Spool`. Nothing here
prints or logs what a record holds.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from handbill.clients.cleaning import EVENT_KINDS, clean_cells, moment_of, month_of
from handbill.clients.descriptions import ATTRIBUTE, KEYS, ShopInfo, ShopSource, TableSpec
from handbill.clients.rejects import Reject
from handbill.clients.spool import Spool
from handbill.clients.tables import Record
from handbill.generator.prompts import CopyRequest, Example

# Side table -> the field that rows point at it by.
SIDES: Final = {"products": "item", "shoppers": "user"}
# What an event must have beside its shopper and kind; other kinds are of a product.
_EVENT_NEEDS: Final = {"search": ("search",), "rating": ("item", "rating")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one record. Its ``repr`` shows nothing of the record.

    Attributes:
        table: Section of the description it belongs to.
        reject: Set when it was set aside.
        example: Copy to learn from: a shopper's row, a described product, published copy.
        event: Kind of event.
        month: When it was, such as 2025-03; "" when that is not known.
        user: Whose event, as ``example.user`` is whose row.
        item: Of what.
        at: When, in seconds since 1970; 0 when that is not known.
        rating: What the shopper gave the product, in a row or an event, where that is known.
        search: What the shopper searched for.
    """

    table: str
    reject: Reject | None = None
    example: Example | None = field(default=None, repr=False)
    event: str = ""
    month: str = ""
    user: str = field(default="", repr=False)
    item: str = field(default="", repr=False)
    at: float = field(default=0.0, repr=False)
    rating: float | None = field(default=None, repr=False)
    search: str = field(default="", repr=False)


class ShopReader:
    """Reads a shop's tables, side tables first.

    Attributes:
        read: Records of each section that are this shop's.
        masked: Kind of personal data to how often it was masked in text that is kept.
    """

    def __init__(self, source: ShopSource, spool: Spool) -> None:
        """Read ``source`` and remember in ``spool``, which is new."""
        self.source = source
        self.read: Counter[str] = Counter()
        self.masked: Counter[str] = Counter()
        self._spool = spool
        self._specs: dict[str, TableSpec] = {
            name: spec for name in KEYS if (spec := getattr(source, name)) is not None
        }

    def outcomes(self) -> Iterator[Outcome]:
        """Every record's outcome: side tables, rows, published copy, the catalogue, events.

        A usable record of a side table has an outcome only when it is a product with a description.

        Raises:
            InputError: A table cannot be read.
        """
        for table in ("products", "shoppers"):
            if table in self._specs:
                yield from self._side_table(table)
        yield from self._rows()
        if "published" in self._specs:
            yield from self._published()
        yield from self._catalogue()
        if "events" in self._specs:
            yield from self._events()

    def _cleaned(self, table: str) -> Iterator[tuple[Record, dict[str, str], str]]:
        """This shop's records of a table with their cells, or with why they cannot be used."""
        spec = self._specs[table]
        for record in spec.table.records():
            mine, problem = _belongs(record, spec)
            if not mine:
                continue
            self.read[table] += 1
            cells: dict[str, str] = {}
            if not problem:
                cells, problem = clean_cells(
                    record, spec.columns, must=_filled(table), masked=self.masked
                )
            yield record, cells, problem

    def _set_aside(self, table: str, record: Record, reason: str) -> Outcome:
        place = self._specs[table].table
        reject = Reject(
            table=table,
            name=place.name,
            place=place.place,
            line=record.line,
            reason=reason,
            raw=record.raw,
        )
        return Outcome(table=table, reject=reject)

    def _side_table(self, table: str) -> Iterator[Outcome]:
        column = self._specs[table].columns[SIDES[table]]
        for record, cells, problem in self._cleaned(table):
            if problem:
                key = record.values.get(column, "").strip()
                self._spool.put(table, key, record.line, None)
                yield self._set_aside(table, record, problem)
                continue
            if before := self._spool.put(table, cells.pop(SIDES[table]), record.line, cells):
                twice = f"{column}: the same as on line {before}; the first one stands"
                yield self._set_aside(table, record, twice)

    def _rows(self) -> Iterator[Outcome]:
        for record, cells, cell_problem in self._cleaned("rows"):
            problem = cell_problem or self._join("rows", cells)
            if not problem and not cells.get("title"):
                problem = "empty title: neither the row nor its product has one"
            if not problem:
                time, rating = cells.pop("time", ""), cells.pop("rating", "")
                example = self._example(cells, self.source.info.scenario)
                first = self._spool.first_seen(_identity(example), record.line)
                if first == record.line:
                    yield Outcome(
                        table="rows",
                        example=example,
                        month=month_of(time),
                        at=_seconds(time),
                        rating=float(rating) if rating else None,
                    )
                    continue
                problem = f"the same row as line {first}"
            yield self._set_aside("rows", record, problem)

    def _published(self) -> Iterator[Outcome]:
        """The shop's own copy, in which no shopper is: who is in it cannot even be named."""
        for record, cells, cell_problem in self._cleaned("published"):
            problem = cell_problem or self._join("published", cells)
            if not problem and not cells.get("title"):
                problem = "empty title: neither the row nor its product has one"
            if not problem:
                example = self._example({"user": "", "item": "", **cells}, "product_description")
                first = self._spool.first_seen(("published", *_identity(example)), record.line)
                if first == record.line:
                    yield Outcome(table="published", example=example)
                    continue
                problem = f"the same row as line {first}"
            yield self._set_aside("published", record, problem)

    def _catalogue(self) -> Iterator[Outcome]:
        """Every product of the shop that has a name and a description, whoever bought it."""
        for item, fields in self.products():
            text = fields.pop("description", "")
            if text and fields.get("title"):
                cells = {"user": "", "item": item, "text": text, **fields}
                yield Outcome(table="products", example=self._example(cells, "product_description"))

    def products(self) -> Iterator[tuple[str, dict[str, str]]]:
        """Id and fields of every product of the shop, after the products table was read.

        Where shops share a table of products, only its own column can tell whose a product is:
        which of them shoppers' rows point at is private. There are none then.
        """
        spec = self.source.products
        if spec is not None and not (self.source.rows.where and not spec.where):
            yield from self._spool.all_fields("products")

    def known(self, side: str, key: str) -> dict[str, str]:
        """What a side table (``products``, ``shoppers``) says of a key; nothing where it does not."""
        return self._spool.fields(side, key) or {}

    def _events(self) -> Iterator[Outcome]:
        spec = self._specs["events"]
        for record, cells, cell_problem in self._cleaned("events"):
            problem = cell_problem
            if not problem:
                event = _event(cells)
                problem = _lacking(event.event, cells, spec.columns)
                for table, key in (("products", event.item), ("shoppers", event.user)):
                    if not problem and key and table in self._specs:
                        problem = self._unknown(table, key, spec.columns[SIDES[table]])
            if not problem:
                # At the same moment it is the same deed, sent twice; at another it was done again.
                what = (event.event, event.user, event.item, event.search)
                row = ("events", *what, str(event.rating), str(event.at))
                first = self._spool.first_seen(row, record.line)
                if first == record.line:
                    yield event
                    continue
                problem = f"the same row as line {first}"
            yield self._set_aside("events", record, problem)

    def _join(self, table: str, cells: dict[str, str]) -> str:
        """Fill in what the side tables know; a row's own cells come first."""
        columns = self._specs[table].columns
        for side, key in SIDES.items():
            if side not in self._specs or not cells.get(key):
                continue
            if problem := self._unknown(side, cells[key], columns[key]):
                return problem
            for name, value in (self._spool.fields(side, cells[key]) or {}).items():
                # What a product says of itself is no copy's description of it.
                if table == "rows" or name != "description":
                    cells[name] = cells.get(name) or value
        return ""

    def _unknown(self, side: str, key: str, column: str) -> str:
        """Why a row that points at ``key`` cannot be joined; "" when it can."""
        name = self._specs[side].table.name
        found = self._spool.line_of(side, key)
        if found is None:
            return f"{column}: not in {name}"
        line, usable = found
        return "" if usable else f"{column}: points at {name}:{line}, which was set aside"

    def _example(self, cells: dict[str, str], scenario: str) -> Example:
        user, item, text = (cells.pop(name) for name in ("user", "item", "text"))
        language = cells.pop("language", "") or self.source.info.language
        described = description_of(cells, self.source.info, language=language)
        fields = {key: value for key, value in cells.items() if not key.startswith(ATTRIBUTE)}
        fields["description"] = described
        request = CopyRequest(**fields, language=language, scenario=scenario)
        return Example(user=user, item=item, request=request, text=text)


def description_of(fields: Mapping[str, str], info: ShopInfo, *, language: str = "") -> str:
    """A product's description and attributes as the service puts them into a prompt."""
    attributes = {
        key.removeprefix(ATTRIBUTE): value
        for key, value in fields.items()
        if key.startswith(ATTRIBUTE) and value
    }
    return info.scenarios.described(
        fields.get("description", ""), attributes, language=language or info.language
    )


def _filled(table: str) -> tuple[str, ...]:
    """Fields whose cells may not be empty; of a side table only its key."""
    if table == "events":  # what else has to be there depends on the kind
        return ("user", "kind")
    return (SIDES[table],) if table in SIDES else KEYS[table][0]


def _event(cells: Mapping[str, str]) -> Outcome:
    kind, time = EVENT_KINDS[cells["kind"].lower()], cells.get("time", "")
    is_search = kind == "search"  # of no product, whatever stands there
    rating = "" if is_search else cells.get("rating", "")
    return Outcome(
        table="events",
        event=kind,
        month=month_of(time),
        user=cells["user"],
        item="" if is_search else cells["item"],
        at=_seconds(time),
        rating=float(rating) if rating else None,
        search=cells.get("search", "") if is_search else "",
    )


def _lacking(kind: str, cells: Mapping[str, str], columns: Mapping[str, str]) -> str:
    """Why an event of a kind cannot be used; "" when it can."""
    for name in _EVENT_NEEDS.get(kind, ("item",)):
        if name not in columns:
            return f"a {kind} without its column: name it as events.{name}"
        if not cells[name]:
            return f"{columns[name]}: empty"
    return ""


def _seconds(time: str) -> float:
    moment = moment_of(time)
    return moment.timestamp() if moment else 0.0


def _identity(example: Example) -> tuple[str, ...]:
    """Everything that is learnt from a row; rows that agree in it are the same row."""
    asked = example.request
    return (
        *(example.user, example.item, example.text, asked.title, asked.description),
        *(asked.category, asked.brand, asked.price, asked.shopper, asked.tone, asked.language),
    )


def _belongs(record: Record, spec: TableSpec) -> tuple[bool, str]:
    """Whether a record is this shop's, and why that cannot be told if it cannot.

    A row nobody can place is set aside by every shop that shares the table: better named more
    than once than lost.
    """
    if not spec.where:
        return True, record.problem
    if record.problem:
        return True, f"{record.problem}; whose row of the shared table it is cannot be told"
    for column, wanted in spec.where.items():
        value = record.values.get(column, "").strip()
        if not value:
            return True, f"{column}: empty, so whose row of the shared table it is cannot be told"
        if value != wanted:
            return False, ""
    return True, ""

"""What copy is asked for: the instructions, words, lengths, rules and tones, read from a file.

Training and serving take their prompts from here (:mod:`handbill.generator.prompts`). The shipped file is
``scenarios.toml``; a file of somebody's own is laid over it, a shop's in training
(:mod:`handbill.clients.descriptions`) and a tenant's in the service (:mod:`handbill.serving.own_scenarios`).
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from handbill.errors import InputError
from handbill.generator.artifacts import canonical_json, sha256_digest

SHIPPED: Final = "scenarios.toml"
VERSION: Final = 1
MAX_FILE_BYTES: Final = 1 << 18
_NOT_SCENARIOS: Final = ("version", "words", "tones", "rules")
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")
_LANGUAGE: Final = re.compile(r"[a-z]{2,3}")
# Fields of a request beside the product's that a scenario may need, or take facts from.
INPUTS: Final = ("question", "reviews", "shopper")

Input = Literal["question", "reviews", "shopper"]
Line = Annotated[str, Field(max_length=200)]
Phrase = Annotated[str, Field(min_length=2, max_length=200, pattern=r"\{\}")]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Words(_Table):
    """The words around what is given, in one language; ``{}`` is the place of a value."""

    tone: Phrase
    language: Line
    product: Phrase
    facts: Phrase
    between: Line
    category: Phrase
    brand: Phrase
    price: Phrase
    question: Phrase
    reviews: Phrase
    shopper: Phrase
    recent: Phrase
    then: Line
    view: Phrase
    search: Phrase
    cart: Phrase
    purchase: Phrase


class Tone(BaseModel):
    """How copy sounds: its words by language, and the sentiment that is wanted of candidates."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)
    __pydantic_extra__: dict[str, Line]
    sentiment: Annotated[float, Field(ge=0, le=1, strict=False)] = 1.0

    def words(self, language: str) -> str:
        """The words of a language; empty where there are none."""
        return (self.__pydantic_extra__ or {}).get(language, "")


class Rule(BaseModel):
    """What copy of a scenario may not say; its patterns by language, over folded text.

    Attributes:
        reason: For people.
        severity: ``block`` keeps copy from being served.
        given: ``rule`` allows it where the product's fields match too, ``words`` in their words only.
    """

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)
    __pydantic_extra__: dict[str, Line | Annotated[str, Field(max_length=4_000)]]
    reason: Annotated[str, Field(min_length=1, max_length=200)]
    severity: Literal["block", "warn"] = "block"
    given: Literal["", "rule", "words"] = ""

    @model_validator(mode="after")
    def _compiles(self) -> Self:
        for language, text in self.patterns().items():
            try:
                _pattern(text)
            except re.error as error:
                raise ValueError(f"{language}: no pattern ({error})") from None
        return self

    def patterns(self) -> Mapping[str, str]:
        """Pattern by language."""
        return self.__pydantic_extra__ or {}

    def compiled(self) -> list[re.Pattern[str]]:
        """The patterns of all languages: copy may mix them."""
        return [_pattern(text) for text in self.patterns().values()]


class InLanguage(_Table):
    """A scenario in one language: what is asked, and the least and most characters of an answer."""

    instruction: Annotated[str, Field(min_length=1, max_length=200)]
    chars: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=1)]] = (0, 4_000)

    @field_validator("chars", mode="before")
    @classmethod
    def _pair(cls, value: Any) -> Any:
        if isinstance(value, list) and len(value) == 2 and value[0] <= value[1]:
            return tuple(value)
        raise ValueError("two whole numbers, the first not above the second")


class Scenario(BaseModel):
    """One kind of copy; its :class:`InLanguage` by language.

    Attributes:
        about: What it is, for people.
        max_tokens: Longest answer where the request does not say.
        lines: Most lines; 0 is any number.
        strict: Whether copy of another length is kept back.
        needs: Fields a request must have.
        facts: Fields beside the product's that hold facts.
        rules: Names of rules it keeps.
        tones: Names of the tones it can have; all where empty.
    """

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)
    __pydantic_extra__: dict[str, InLanguage]
    about: Annotated[str, Field(min_length=1, max_length=200)]
    max_tokens: Annotated[int, Field(ge=1, le=4_096)] = 64
    lines: Annotated[int, Field(ge=0)] = 0
    strict: bool = False
    needs: list[Input] = []
    facts: list[Input] = []
    rules: list[str] = []
    tones: list[str] = []

    def languages(self) -> Mapping[str, InLanguage]:
        """What it is in each language."""
        return self.__pydantic_extra__ or {}


class _File(_Table):
    version: Literal[1]
    words: dict[str, Words]
    tones: dict[str, Tone]
    rules: dict[str, Rule]
    scenarios: dict[str, Scenario]

    @model_validator(mode="after")
    def _agree(self) -> Self:
        for language in self.words:
            if not _LANGUAGE.fullmatch(language):
                raise ValueError(f"words.{language}: no language such as en or zh")
        if "en" not in self.words:
            raise ValueError("words.en is missing: it serves languages without words")
        for name, scenario in self.scenarios.items():
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name[:63]}: a scenario's name is a-z, 0-9 and _")
            if "en" not in scenario.languages():
                raise ValueError(f"{name}.en is missing: it serves languages without a text")
            for kind, names, known in (
                ("rules", scenario.rules, self.rules),
                ("tones", scenario.tones, self.tones),
                ("a language", scenario.languages(), self.words),
            ):
                if unknown := [one for one in names if one not in known]:
                    raise ValueError(
                        f"{name}: {unknown[0]!r} is not in [{'words' if kind[0] == 'a' else kind}]"
                    )
        for kind, table in (("tones", self.tones), ("rules", self.rules)):
            for name, entry in table.items():
                if unknown := [one for one in entry.model_extra or () if one not in self.words]:
                    raise ValueError(f"{kind}.{name}: unknown key {unknown[0]!r}")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenarios:
    """Everything one file holds, with the shipped one below it.

    Attributes:
        words: By language.
        tones: By name.
        rules: By name.
        all: The scenarios by name.
        prompts: Digest of all that prompts are made of; empty where they are the shipped file's. Files that
            differ in comments, rules or lengths alone have the same.
        file: Where it was read from, for people.
    """

    words: Mapping[str, Words]
    tones: Mapping[str, Tone]
    rules: Mapping[str, Rule]
    all: Mapping[str, Scenario]
    prompts: str = ""
    file: str = field(default=SHIPPED, compare=False)

    def get(self, name: str) -> Scenario:
        """A scenario by its name.

        Raises:
            InputError: There is none; with those there are.
        """
        if name not in self.all:
            raise InputError(f"scenario: {name[:80]!r} is not one of {', '.join(sorted(self.all))}")
        return self.all[name]

    def tones_of(self, name: str) -> list[str]:
        """The names of the tones a scenario can have."""
        return list(self.get(name).tones or self.tones)

    def spoken(self, language: str) -> str:
        """The language of the words for a BCP 47 tag; ``en`` where there are none."""
        primary = language.replace("_", "-").partition("-")[0].lower()
        return primary if primary in self.words else "en"

    def described(self, description: str, attributes: Mapping[str, str], *, language: str) -> str:
        """A product's description with its attributes behind it: what prompts have, learnt and served alike."""
        facts = (f"{name} {value}" for name, value in attributes.items())
        then = self.words[self.spoken(language)].then
        return then.join(filter(None, (description.strip(), *facts)))

    def texts(self) -> list[str]:
        """Everything of our own that prompts are made of, in all languages: for a tokenizer to know."""
        asked = [one.instruction for each in self.all.values() for one in each.languages().values()]
        words = [text for each in self.words.values() for text in each.model_dump().values()]
        return [*asked, *(text.replace("{}", "") for text in words if text)]

    def check(self, *, scenario: str, tone: str, language: str, given: Mapping[str, str]) -> None:
        """Refuse what no copy can be written for.

        Args:
            scenario: A name.
            tone: A name; empty is none.
            language: A BCP 47 tag.
            given: The inputs of the request, see :data:`INPUTS`.

        Raises:
            InputError: Naming the field, and what there is.
        """
        found = self.get(scenario)
        if tone and tone not in self.tones_of(scenario):
            raise InputError(
                f"tone: {tone[:80]!r} is not one of {scenario}'s: {', '.join(self.tones_of(scenario))}"
            )
        primary = language.replace("_", "-").partition("-")[0].lower()
        if primary not in self.words:
            raise InputError(
                f"language: {language[:80]!r} is not one of {', '.join(sorted(self.words))}"
            )
        for name in found.needs:
            if not given.get(name, "").strip():
                raise InputError(f"{name}: the scenario {scenario} needs it")


@cache
def shipped() -> Scenarios:
    """The file that comes with handbill."""
    text = files("handbill.generator").joinpath(SHIPPED).read_text("utf-8")
    return _checked(tomllib.loads(text), SHIPPED)


def read_scenarios(path: Path) -> Scenarios:
    """Read somebody's own file and lay it over the shipped one.

    Raises:
        InputError: It cannot be read, or a key is wrong; with its place.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InputError(f"{path}: over {MAX_FILE_BYTES} bytes")
        own = tomllib.loads(path.read_text("utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    below = tomllib.loads(files("handbill.generator").joinpath(SHIPPED).read_text("utf-8"))
    found = replace(_checked(_laid_over(below, own), str(path)), file=str(path))
    said = _said(found)
    return found if said == _said(shipped()) else replace(found, prompts=sha256_digest(said))


def _said(scenarios: Scenarios) -> bytes:
    """All that prompts are made of, as one string of bytes."""
    return canonical_json(
        {
            "words": {key: words.model_dump() for key, words in scenarios.words.items()},
            "tones": {name: tone.model_extra for name, tone in scenarios.tones.items()},
            "instructions": {
                name: {key: own.instruction for key, own in one.languages().items()}
                for name, one in scenarios.all.items()
            },
        }
    )


def _laid_over(below: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    return below | {
        name: _laid_over(below[name], value)
        if isinstance(value, dict) and isinstance(below.get(name), dict)
        else value
        for name, value in own.items()
    }


def _checked(facts: dict[str, Any], name: str) -> Scenarios:
    known = {key: facts[key] for key in _NOT_SCENARIOS if key in facts}
    others = {key: value for key, value in facts.items() if key not in _NOT_SCENARIOS}
    try:
        file = _File.model_validate({**known, "scenarios": others})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"] if part != "scenarios")
        words = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{name}: {place + ': ' if place else ''}{words}") from None
    return Scenarios(words=file.words, tones=file.tones, rules=file.rules, all=file.scenarios)


@cache
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text, re.A)

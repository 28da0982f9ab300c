"""From a request for copy to token ids, and from a shopper's row to a training example.

The words come from :mod:`handbill.generator.scenarios`, for training and serving alike. Everything a
tenant or a shopper wrote is tokenised with special tokens switched off, so no text can open or close a
turn of the conversation: only this module and a base model's chat template write the markers.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

from handbill.errors import InputError
from handbill.generator.chat_frames import (
    answer_end,
    chat_frame,
    fill,
    is_chatml,
    takes_system,
    without_system,
)
from handbill.generator.scenarios import Scenarios, shipped

TURN_START: Final = "<|im_start|>"
TURN_END: Final = "<|im_end|>"
# Most tokens of a product's name, and of its category, brand and price together.
_TITLE_TOKENS: Final = 24
_FACTS_TOKENS: Final = 24
# The fields that are cut where there is no room, in the order of who gets the odd token last.
_LONG: Final = ("recent", "shopper", "question", "reviews", "description")


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyRequest:
    """What copy is asked for. Empty text means "not known".

    Attributes:
        title: Name of the product; the only field that must be there.
        shopper: The shopper's interests in words.
        recent: What the shopper did just now, the newest first.
        question: What a service answer answers.
        reviews: What a review summary sums up.
        scenario: A scenario's name (:mod:`handbill.generator.scenarios`).
        language: BCP 47 tag of the copy.
    """

    title: str
    description: str = ""
    category: str = ""
    brand: str = ""
    price: str = ""
    shopper: str = ""
    recent: str = ""
    question: str = ""
    reviews: str = ""
    scenario: str = "recommendation_reason"
    tone: str = ""
    language: str = "en"

    def __post_init__(self) -> None:
        if not self.title.strip():
            raise InputError("title: a request for copy needs the product's name")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A request in the words of its scenario, cut to what fits; :meth:`text` puts it together.

    Attributes:
        words: Those around the values, in the language of the prompt.
        instruction: What is asked for.
        tone: With its words; empty where there is none.
        language: With its words.
        title: Of the product.
        facts: Category, brand and price by name, each with its words.
        description: Of the product.
        question: A shopper's.
        reviews: Of the product.
        recent: What the shopper did just now.
        shopper: The shopper's interests.
    """

    words: Mapping[str, str]
    instruction: str
    tone: str = ""
    language: str = ""
    title: str
    facts: tuple[tuple[str, str], ...] = ()
    description: str = ""
    question: str = ""
    reviews: str = ""
    recent: str = ""
    shopper: str = ""

    def text(self) -> str:
        """The turn of the user."""
        text = f"{self.instruction}{self.tone}{self.language}\n" + self.said("product", self.title)
        if self.facts:
            text += self.said("facts", self.words["between"].join(value for _, value in self.facts))
        if self.description:
            text += f"\n{self.description}"
        for name in ("reviews", "question"):
            if value := getattr(self, name):
                text += "\n" + self.said(name, value)
        lately = self.said("recent", self.recent) if self.recent else ""
        if who := self.words["then"].join(filter(None, (lately, self.shopper))):
            text += "\n" + self.said("shopper", who)
        return text

    def ids(self, tokenizer: Any) -> list[int]:
        """Its token ids, up to where the copy starts."""
        return render_chat(tokenizer, [("user", self.text())])

    def said(self, name: str, value: str) -> str:
        """A value in its words."""
        return self.words[name].replace("{}", value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One row of a shopper: a request and the copy that answers it.

    Attributes:
        weight: How much learning from it counts, beside the shopper's other rows.
    """

    user: str
    item: str
    request: CopyRequest
    text: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """Token ids of prompt and copy; the loss is taken on ``ids[n_prompt:]`` only, times ``weight``."""

    ids: tuple[int, ...]
    n_prompt: int
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def has_copy(self) -> bool:
        """Whether there is more of copy than its end."""
        return len(self.ids) > self.n_prompt + 1


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of text nobody trusts: markers inside it stay ordinary characters.

    Tokens that a vocabulary adds without calling them special, such as ``<think>``, are kept out too.
    """
    pattern = _added(tokenizer)
    pieces = [text]
    if pattern is not None:
        pieces, start = [], 0
        for found in pattern.finditer(text):  # cut behind a marker's first character, it is none
            pieces.append(text[start : found.start() + 1])
            start = found.start() + 1
        pieces.append(text[start:])
    ids: list[int] = []
    for piece in pieces:
        ids += tokenizer(piece, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return ids


@lru_cache(maxsize=8)
def _added(tokenizer: Any) -> re.Pattern[str] | None:
    """Finds what a vocabulary takes for one token in any text, though it does not call it special."""
    added = [
        token.content
        for token in getattr(tokenizer, "added_tokens_decoder", {}).values()
        if not token.special and len(token.content) > 1
    ]
    # A look ahead, so that markers that overlap are all found.
    return re.compile(f"(?={'|'.join(map(re.escape, added))})") if added else None


def turn_end_id(tokenizer: Any) -> int:
    """The token that ends a piece of copy."""
    ends = tokenizer.convert_tokens_to_ids(TURN_END)
    if isinstance(ends, int) and ends >= 0 and ends != tokenizer.unk_token_id:
        return ends
    ends = answer_end(tokenizer) if getattr(tokenizer, "chat_template", None) else None
    return int(tokenizer.eos_token_id) if ends is None else ends


def render_chat(tokenizer: Any, messages: Sequence[tuple[str, str]]) -> list[int]:
    """Token ids of a conversation, up to where the assistant's answer starts.

    Args:
        tokenizer: A Hugging Face tokenizer. What stands around the messages is its chat template's.
            ChatML is written without the system message that some of its templates add, and also where
            there are its markers and no template. Other vocabularies without a template get plain
            paragraphs headed by the role.
        messages: Pairs (role, text); roles are ``system``, ``user`` and ``assistant``. Where the
            template refuses a system message, the user's first begins with its text.

    Raises:
        InputError: The template refuses the conversation, or loses or changes a message.
    """
    templated = bool(getattr(tokenizer, "chat_template", None))
    start = tokenizer.convert_tokens_to_ids(TURN_START)
    has_markers = isinstance(start, int) and start >= 0 and start != tokenizer.unk_token_id
    if templated and not (has_markers and is_chatml(tokenizer, TURN_START, TURN_END)):
        return _render_template(tokenizer, messages)
    ids: list[int] = []
    for role, text in messages:
        if has_markers:
            ids += [start, *_later_ids(tokenizer, f"{role}\n{text}"), turn_end_id(tokenizer)]
            ids += _later_ids(tokenizer, "\n")
        else:
            ids += plain_ids(tokenizer, f"{role}: {text}\n\n")
    if has_markers:
        return [*ids, start, *_later_ids(tokenizer, "assistant\n")]
    return ids + plain_ids(tokenizer, "assistant:")


def _render_template(tokenizer: Any, messages: Sequence[tuple[str, str]]) -> list[int]:
    if not takes_system(tokenizer):
        messages = without_system(messages)
    ids: list[int] = []
    for piece in chat_frame(tokenizer, tuple(role for role, _ in messages)):
        if isinstance(piece, int):
            ids.append(piece)
        # A message and the template's words beside it are one text, as they were in the model's training.
        elif text := fill(piece, messages):
            ids += _later_ids(tokenizer, text) if ids else plain_ids(tokenizer, text)
    return ids


def _later_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of text behind a marker, where some vocabularies add no space as they do at the start."""
    if _spaces_start(tokenizer):
        # No token of such a vocabulary joins a line's end to what follows.
        line_end = plain_ids(tokenizer, "\n")
        ids = plain_ids(tokenizer, f"\n{text}")
        if ids[: len(line_end)] == line_end:
            return ids[len(line_end) :]
    return plain_ids(tokenizer, text)


@lru_cache(maxsize=8)
def _spaces_start(tokenizer: Any) -> bool:
    for number, token in getattr(tokenizer, "added_tokens_decoder", {}).items():
        if token.special and not token.rstrip:
            ids = tokenizer(f"{token.content}a", add_special_tokens=False)["input_ids"]
            return bool(ids != [number, *plain_ids(tokenizer, "a")])
    return False


def fit_prompt(
    tokenizer: Any,
    request: CopyRequest,
    *,
    max_tokens: int = 96,
    scenarios: Scenarios | None = None,
) -> Prompt:
    """A request in words, cut to what fits into ``max_tokens``.

    Long fields are shortened, never the instruction. What is left after the product's name is shared by
    the other fields; what one of them does not need goes to the others.

    Raises:
        InputError: An unknown scenario, or ``max_tokens`` is too small for the instruction itself.
    """
    prompt = _frame(tokenizer, request, scenarios or shipped())
    facts = _facts(tokenizer, prompt.words, request, _FACTS_TOKENS)
    over = _needed(tokenizer, replace(prompt, facts=facts)) - max_tokens
    if over > 0:
        facts = _facts(tokenizer, prompt.words, request, max(0, _FACTS_TOKENS - over))
    prompt = replace(prompt, facts=facts)
    needed = _needed(tokenizer, prompt)
    # Those that most requests have are counted in the frame.
    labels = {name: prompt.said(name, "") for name in ("recent", "question", "reviews")}
    given = {name: getattr(request, name) for name in _LONG}
    needed += sum(len(plain_ids(tokenizer, labels[name])) + 1 for name in labels if given[name])
    if needed > max_tokens:
        raise InputError(
            f"max_prompt_tokens={max_tokens} is too small: this request needs {needed}"
        )
    wants = {name: len(plain_ids(tokenizer, value)) for name, value in given.items() if value}
    shares = _share(max_tokens - needed, wants)
    cut: dict[str, Any] = {
        name: _shorten(tokenizer, given[name], n) for name, n in shares.items() if n
    }
    return replace(prompt, **cut)


def render_prompt(
    tokenizer: Any,
    request: CopyRequest,
    *,
    max_tokens: int = 96,
    scenarios: Scenarios | None = None,
) -> list[int]:
    """Token ids of a request for copy, up to where the copy starts; see :func:`fit_prompt`."""
    return fit_prompt(tokenizer, request, max_tokens=max_tokens, scenarios=scenarios).ids(tokenizer)


def encode_example(
    tokenizer: Any,
    example: Example,
    *,
    max_prompt_tokens: int = 96,
    max_copy_tokens: int = 64,
    scenarios: Scenarios | None = None,
) -> EncodedExample:
    """Token ids of one row: its prompt, its copy (cut at ``max_copy_tokens``) and the end mark."""
    prompt = render_prompt(
        tokenizer, example.request, max_tokens=max_prompt_tokens, scenarios=scenarios
    )
    copy = plain_ids(tokenizer, example.text.strip())[: max_copy_tokens - 1]
    ids = (*prompt, *copy, turn_end_id(tokenizer))
    return EncodedExample(ids, len(prompt), example.weight)


def _frame(tokenizer: Any, request: CopyRequest, scenarios: Scenarios) -> Prompt:
    """The words every request has: what is asked, in which tone and language, about what."""
    scenario = scenarios.get(request.scenario)
    spoken = scenarios.spoken(request.language)
    if spoken not in scenario.languages():
        spoken = "en"
    tone, language = " ".join(request.tone.split()), " ".join(request.language.split())
    if known := scenarios.tones.get(tone):
        tone = known.words(spoken) or tone
    prompt = Prompt(
        words=scenarios.words[spoken].model_dump(),
        instruction=scenario.languages()[spoken].instruction,
        title=_shorten(tokenizer, request.title, _TITLE_TOKENS),
    )
    return replace(
        prompt,
        tone=prompt.said("tone", tone[:40]) if tone else "",
        language=prompt.said("language", language[:16]) if language != spoken else "",
    )


def _facts(
    tokenizer: Any, words: Mapping[str, str], request: CopyRequest, max_tokens: int
) -> tuple[tuple[str, str], ...]:
    """Category, brand and price in words, together cut to so many tokens."""
    facts = [
        (name, re.sub(r"\s+", " ", words[name].replace("{}", value)))
        for name in ("category", "brand", "price")
        if (value := getattr(request, name))
    ]
    between = words["between"]
    short = _shorten(tokenizer, between.join(value for _, value in facts), max_tokens)
    kept, start = [], 0
    for name, value in facts:
        after = start + len(value) + len(between)
        piece = short[start : after - len(between)] if after < len(short) else short[start:]
        if piece:
            kept.append((name, piece))
        start = after
    return tuple(kept)


def _needed(tokenizer: Any, prompt: Prompt) -> int:
    """Tokens of a prompt with the words of a line for the shopper and one for the product."""
    return len(prompt.ids(tokenizer)) + 6


def _share(room: int, wants: Mapping[str, int]) -> dict[str, int]:
    """So much for each as it wants; where there is less, the same for all that want more.

    >>> _share(10, {"shopper": 2, "description": 20})
    {'shopper': 2, 'description': 8}
    >>> _share(11, {"shopper": 20, "description": 20})
    {'shopper': 5, 'description': 6}
    """
    shares: dict[str, int] = {}
    left = dict(wants)
    while left:
        small = [name for name, want in left.items() if want <= room // len(left)]
        name = small[0] if small else next(iter(left))
        shares[name] = min(left[name], room if small else room // len(left))
        room -= shares[name]
        del left[name]
    return shares


def _shorten(tokenizer: Any, text: str, max_tokens: int) -> str:
    text = " ".join(text.split())
    ids = plain_ids(tokenizer, text)
    if len(ids) <= max_tokens:
        return text
    return str(tokenizer.decode(ids[:max_tokens], skip_special_tokens=False)).strip()

"""From a request for copy to token ids, and from a shopper's row to a training example.

Everything a tenant or a shopper wrote is tokenised with special tokens switched off, so no
text can open or close a turn of the conversation: only this module writes the markers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from handbill.errors import InputError

SCENARIOS: Final[dict[str, str]] = {
    "recommendation_reason": "Write why this shopper would like this product.",
    "product_description": "Describe this product for the shop's page.",
    "ad_headline": "Write a headline for this product.",
    "promotion": "Write a short promotion for this product.",
    "customer_care": "Write a friendly message to this shopper about this product.",
    "social_post": "Write a social post about this product.",
}

TURN_START: Final = "<|im_start|>"
TURN_END: Final = "<|im_end|>"


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyRequest:
    """What copy is asked for. Empty text means "not known".

    Attributes:
        title: Name of the product; the only field that must be there.
        shopper: The shopper's interests in words.
        scenario: A key of :data:`SCENARIOS`.
        language: BCP 47 tag of the copy.
    """

    title: str
    description: str = ""
    category: str = ""
    brand: str = ""
    price: str = ""
    shopper: str = ""
    scenario: str = "recommendation_reason"
    tone: str = ""
    language: str = "en"

    def __post_init__(self) -> None:
        if not self.title.strip():
            raise InputError("title: a request for copy needs the product's name")
        if self.scenario not in SCENARIOS:
            raise InputError(
                f"scenario: {self.scenario!r} is not one of {', '.join(sorted(SCENARIOS))}"
            )


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
    """Token ids of text nobody trusts: markers inside it stay ordinary characters."""
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return list(ids)


def turn_end_id(tokenizer: Any) -> int:
    """The token that ends a piece of copy."""
    ends = tokenizer.convert_tokens_to_ids(TURN_END)
    if isinstance(ends, int) and ends >= 0 and ends != tokenizer.unk_token_id:
        return ends
    return int(tokenizer.eos_token_id)


def render_chat(tokenizer: Any, messages: Sequence[tuple[str, str]]) -> list[int]:
    """Token ids of a conversation, up to where the assistant's answer starts.

    Args:
        tokenizer: A Hugging Face tokenizer. Vocabularies without chat markers get plain
            paragraphs headed by the role.
        messages: Pairs (role, text); roles are ``system``, ``user`` and ``assistant``.
    """
    start = tokenizer.convert_tokens_to_ids(TURN_START)
    has_markers = isinstance(start, int) and start >= 0 and start != tokenizer.unk_token_id
    ids: list[int] = []
    for role, text in messages:
        if has_markers:
            ids += [start, *plain_ids(tokenizer, f"{role}\n{text}"), turn_end_id(tokenizer)]
            ids += plain_ids(tokenizer, "\n")
        else:
            ids += plain_ids(tokenizer, f"{role}: {text}\n\n")
    if has_markers:
        return [*ids, start, *plain_ids(tokenizer, "assistant\n")]
    return ids + plain_ids(tokenizer, "assistant:")


def render_prompt(tokenizer: Any, request: CopyRequest, *, max_tokens: int = 96) -> list[int]:
    """Token ids of a request for copy, up to where the copy starts.

    Long fields are shortened, never the instruction: what is left of ``max_tokens`` after the
    product's name goes half to the shopper's interests and half to the product's description,
    and what one of them does not need goes to the other.

    Raises:
        InputError: ``max_tokens`` is too small for the instruction itself.
    """
    facts = ", ".join(
        f"{name} {value}"
        for name, value in (
            ("category", request.category),
            ("brand", request.brand),
            ("price", request.price),
        )
        if value
    )
    instruction = SCENARIOS[request.scenario]
    if request.tone:
        instruction += f" Tone: {request.tone[:40]}."
    if request.language != "en":
        instruction += f" Language: {request.language[:16]}."
    title = _shorten(tokenizer, request.title, 24)
    head = f"{instruction}\nProduct: {title}"
    if facts:
        head += f" ({_shorten(tokenizer, facts, 24)})"
    frame = len(render_chat(tokenizer, [("user", head)])) + 6  # "\nShopper: " and "\n"
    room = max_tokens - frame
    if room < 0:
        raise InputError(f"max_prompt_tokens={max_tokens} is too small: this request needs {frame}")
    n_shopper = len(plain_ids(tokenizer, request.shopper))
    n_description = len(plain_ids(tokenizer, request.description))
    to_shopper = min(n_shopper, max(room // 2, room - n_description))
    to_description = min(n_description, room - to_shopper)
    text = head
    if request.description and to_description:
        text += f"\n{_shorten(tokenizer, request.description, to_description)}"
    if request.shopper and to_shopper:
        text += f"\nShopper: {_shorten(tokenizer, request.shopper, to_shopper)}"
    return render_chat(tokenizer, [("user", text)])


def encode_example(
    tokenizer: Any, example: Example, *, max_prompt_tokens: int = 96, max_copy_tokens: int = 64
) -> EncodedExample:
    """Token ids of one row: its prompt, its copy (cut at ``max_copy_tokens``) and the end mark."""
    prompt = render_prompt(tokenizer, example.request, max_tokens=max_prompt_tokens)
    copy = plain_ids(tokenizer, example.text.strip())[: max_copy_tokens - 1]
    ids = (*prompt, *copy, turn_end_id(tokenizer))
    return EncodedExample(ids, len(prompt), example.weight)


def _shorten(tokenizer: Any, text: str, max_tokens: int) -> str:
    text = " ".join(text.split())
    ids = plain_ids(tokenizer, text)
    if len(ids) <= max_tokens:
        return text
    return str(tokenizer.decode(ids[:max_tokens], skip_special_tokens=False)).strip()

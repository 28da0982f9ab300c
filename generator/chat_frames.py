"""What stands around the messages of a conversation, as the chat template of a base model has it.

A template is never given what anybody wrote. It is rendered around one mark for each message, and the marks
are where :func:`handbill.generator.prompts.render_chat` puts the messages.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final

from handbill.errors import InputError

# One character for each message. Private use: no template strips, escapes or looks for it.
_FIRST_MARK: Final = 0xF0000
_MARK: Final = re.compile("[\U000f0000-\U000ffffd]")
# Some templates name the day. A clock would make a prompt another one than was trained with, so it is always
# the day that Llama 3's template has where there is no clock.
_NO_CLOCK: Final = "{% macro strftime_now(form) %}26 Jul 2024{% endmacro %}"


@lru_cache(maxsize=256)
def chat_frame(tokenizer: Any, roles: tuple[str, ...]) -> tuple[int | str, ...]:
    """The conversation with marks for its messages, cut at the markers of turns.

    Returns:
        Ids of markers, and the runs of text between them for :func:`fill`.

    Raises:
        InputError: The template refuses such a conversation, or does not hand on each message once.
    """
    text = marked_chat(tokenizer, roles)
    added = sorted(tokenizer.added_tokens_decoder.items(), key=lambda one: -len(one[1].content))
    added = [(number, token) for number, token in added if token.content]
    markers = re.compile("|".join(_pattern(token) for _, token in added) or "(?!)")
    frame: list[int | str] = []
    start = 0
    for found in markers.finditer(text):
        if found.start() > start:
            frame.append(text[start : found.start()])
        frame.append(int(added[(found.lastindex or 1) - 1][0]))
        start = found.end()
    return (*frame, text[start:]) if start < len(text) else tuple(frame)


@lru_cache(maxsize=8)
def answer_end(tokenizer: Any) -> int | None:
    """The marker that a template writes right behind an answer; None where there is no such marker."""
    try:
        frame = chat_frame(tokenizer, ("user", "assistant", "user"))
    except InputError:
        return None
    answer = chr(_FIRST_MARK + 1)
    for piece, behind in pairwise(frame):
        if isinstance(piece, str) and piece.rstrip().endswith(answer) and isinstance(behind, int):
            return behind
    return None


def _pattern(token: Any) -> str:
    """Finds a marker, with the white space beside it that some swallow."""
    before, after = r"\s*" * bool(token.lstrip), r"\s*" * bool(token.rstrip)
    return f"({before}{re.escape(token.content)}{after})"


def fill(run: str, messages: Sequence[tuple[str, str]]) -> str:
    """A run of text with the messages in the place of their marks."""
    return _MARK.sub(lambda mark: messages[ord(mark[0]) - _FIRST_MARK][1], run)


def marked_chat(tokenizer: Any, roles: Sequence[str]) -> str:
    """The template around marks, up to where the assistant's answer starts.

    Raises:
        InputError: As of :func:`chat_frame`.
    """
    from jinja2 import TemplateError

    marks = [chr(_FIRST_MARK + number) for number in range(len(roles))]
    chat = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
    try:
        text = tokenizer.apply_chat_template(
            chat,
            chat_template=_NO_CLOCK + tokenizer.get_chat_template(),
            tokenize=False,
            add_generation_prompt=True,
        )
    except (TemplateError, TypeError, ValueError) as error:
        message = f"the base model's chat template refuses this conversation: {error}"
        raise InputError(message) from error
    for number, (role, mark) in enumerate(zip(roles, marks, strict=True), 1):
        if text.count(mark) != 1:
            raise InputError(
                f"the base model's chat template drops, changes or repeats message {number} ({role})"
            )
    return str(text)


@lru_cache(maxsize=8)
def is_chatml(tokenizer: Any, start: str, end: str) -> bool:
    """Whether a template writes ChatML, whatever it adds where there is no system message."""
    roles = ("system", "user")
    turns = (
        f"{start}{role}\n{chr(_FIRST_MARK + number)}{end}\n" for number, role in enumerate(roles)
    )
    try:
        return marked_chat(tokenizer, roles) == f"{''.join(turns)}{start}assistant\n"
    except InputError:
        return False


@lru_cache(maxsize=8)
def takes_system(tokenizer: Any) -> bool:
    """Whether a template has a place for a system message; Gemma's and the first of Mistral's raise."""
    from jinja2 import TemplateError

    try:
        marked_chat(tokenizer, ("system", "user"))
    except InputError as error:
        return not isinstance(error.__cause__, TemplateError)
    return True


def without_system(messages: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """What the system says, at the head of the first message of the user."""
    told = [text for role, text in messages if role == "system"]
    rest = [(role, text) for role, text in messages if role != "system"]
    first = next((number for number, (role, _) in enumerate(rest) if role == "user"), None)
    if told and first is not None:
        rest[first] = ("user", "\n\n".join([*told, rest[first][1]]))
    elif told:
        rest.insert(0, ("user", "\n\n".join(told)))
    return rest

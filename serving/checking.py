"""Texts are checked before they are served.

Copy is held back until all of it is checked, and another candidate is written for one that is
blocked. Answers of OpenAI's endpoints stream as they come and bear their findings at the end:
not every chat is copy, and a client that streams cannot take a word back.
"""

from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace

from handbill.generator.claims.checker import Finding, blocks
from handbill.serving.sequences import Delta

Check = Callable[[str], list[Finding]]
Keep = Callable[[str], Awaitable[int | None]]
Choose = Callable[[list[Delta], int], Awaitable[list[Delta]]]


async def approved(
    write: Callable[[int], AsyncGenerator[Delta, None]],
    check: Check,
    *,
    attempts: int,
    keep: Keep | None = None,
) -> AsyncGenerator[Delta, None]:
    """The first candidate that is not blocked, in one piece.

    While candidates are written, pieces without text tell how many tokens they cost. When all are
    blocked, the last piece has no text, the last candidate's findings and ``content_filter``.

    Args:
        write: Streams a candidate, by its number.
        check: Finds what is wrong with a text.
        attempts: How many candidates at most.
        keep: Takes the last candidate to the review queue.
    """
    text, findings = "", list[Finding]()
    for attempt in range(attempts):
        text, last = "", Delta(text="", n_tokens=0)
        async with aclosing(write(attempt)) as stream:
            async for delta in stream:
                text, last = text + delta.text, delta
                yield Delta(text="", n_tokens=delta.n_tokens)
        text = text.strip()
        findings = check(text)
        if not blocks(findings):
            yield replace(last, text=text, n_tokens=0, findings=findings_as_facts(findings, text))
            return
    yield Delta(
        text="",
        n_tokens=0,
        finish_reason="content_filter",
        findings=findings_as_facts(findings, text),
        review=None if keep is None else await keep(text),
    )


async def best_approved(
    stream: AsyncGenerator[Delta, None],
    check: Check,
    *,
    answers: int,
    keep: Keep | None = None,
    choose: Choose | None = None,
) -> AsyncGenerator[Delta, None]:
    """The best texts of several that are not blocked, each in one piece.

    Where fewer pass than are wanted, the other pieces have no text, the findings of texts that are
    blocked, the best first, and ``content_filter``.

    Args:
        stream: Every text a search found, the best first; or candidates as they are written.
        check: Finds what is wrong with a text.
        answers: How many are wanted.
        keep: Takes blocked texts to the review queue.
        choose: Orders so many of those that passed, the best first; as they come if not given.
    """
    passed, blocked = list[Delta](), list[Delta]()
    texts: defaultdict[int, str] = defaultdict(str)
    async with aclosing(stream):
        async for delta in stream:
            texts[delta.index] += delta.text
            if delta.finish_reason is None:
                yield Delta(text="", n_tokens=delta.n_tokens)
                continue
            text = texts[delta.index].strip()
            findings = check(text)
            found = replace(
                delta, text=text, n_tokens=0, findings=findings_as_facts(findings, text)
            )
            (blocked if blocks(findings) else passed).append(found)
            yield Delta(text="", n_tokens=delta.n_tokens)
    if choose is not None and passed:
        passed.sort(key=lambda found: found.index)  # not by who was done first
        passed = await choose(passed, answers)
    for index, found in enumerate([*passed, *blocked][:answers]):
        if index < len(passed):
            yield replace(found, index=index)
        else:
            review = None if keep is None else await keep(found.text)
            yield replace(
                found, index=index, text="", finish_reason="content_filter", review=review
            )


async def marked(stream: AsyncGenerator[Delta, None], check: Check) -> AsyncGenerator[Delta, None]:
    """The stream as it is, with what is wrong with all of a text on its last piece."""
    texts: defaultdict[int, str] = defaultdict(str)
    async with aclosing(stream):
        async for delta in stream:
            texts[delta.index] += delta.text
            if delta.finish_reason is None:
                yield delta
            else:
                text = texts[delta.index]
                yield replace(delta, findings=findings_as_facts(check(text), text))


def findings_as_facts(findings: list[Finding], text: str) -> tuple[dict[str, str | int], ...]:
    """Findings as an answer tells them."""
    return tuple(finding.facts(text) for finding in findings)

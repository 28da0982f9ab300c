import asyncio

import pytest

from handbill.serving.errors import BusyError, UnavailableError
from handbill.serving.sequences import Delta
from handbill.serving.streams import Split, merge


class Source:
    """Pieces of several answers, in turn; the last ``missing`` of them never come."""

    def __init__(self, texts, *, missing=0, error=None):
        self.texts, self.missing, self.error = texts, missing, error
        self.closed = 0

    async def stream(self):
        try:
            pieces = [
                (at, index) for index, text in enumerate(self.texts) for at in range(len(text))
            ]
            for at, index in sorted(pieces)[: len(pieces) - self.missing]:
                await asyncio.sleep(0)
                reason = "stop" if at + 1 == len(self.texts[index]) else None
                text = self.texts[index][at]
                yield Delta(text=text, n_tokens=1, finish_reason=reason, index=index)
            if self.error:
                raise self.error
        finally:
            self.closed += 1


async def read(stream):
    return "".join([delta.text async for delta in stream])


def test_answers_taken_apart_are_each_whole_and_merge_to_the_same():
    source = Source(["a", "bcd", "ef"])

    async def main():
        split = Split(source.stream(), 3)
        apart = await asyncio.gather(*(read(split.of(i)) for i in (2, 0, 1)))
        await split.aclose()
        again = Split(source.stream(), 3)
        found = ["", "", ""]
        async for index, delta in merge([again.of(i) for i in range(3)]):
            assert delta.index == 0
            found[index] += delta.text
        await again.aclose()
        return apart, found

    assert asyncio.run(main()) == (["ef", "a", "bcd"], ["a", "bcd", "ef"])
    assert source.closed == 2


@pytest.mark.parametrize("read_first", [False, True])
def test_the_source_is_closed_however_little_was_read(read_first):
    source = Source(["abc" * 100] * 2)

    async def main():
        split = Split(source.stream(), 2)
        if read_first:
            await anext(split.of(1))
        await split.aclose()

    asyncio.run(main())
    assert source.closed == int(read_first)  # what never began has nothing to close


@pytest.mark.parametrize(
    ("missing", "error", "wanted"),
    [(1, None, UnavailableError), (3, None, UnavailableError), (1, BusyError("x"), BusyError)],
)
def test_an_answer_whose_end_never_comes_is_an_error(missing, error, wanted):
    async def main():
        split = Split(Source(["a", "bcd"], missing=missing, error=error).stream(), 2)
        results = await asyncio.gather(*(read(split.of(i)) for i in (0, 1)), return_exceptions=True)
        await split.aclose()
        return results

    first, second = asyncio.run(main())
    assert first == "a"
    assert isinstance(second, wanted)

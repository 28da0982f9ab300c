"""Schemas that answers must follow: read by llguidance, in bounds, and tried out of harm's way.

What the library does not support is refused, never left out. Its limits bound most of what a
schema may cost, but some small schemas take minutes or all memory to read (a large ``multipleOf``,
hundreds of patterns on one text). So the gateway has a process of its own read every schema first,
with a limit on its time and memory; what ends it is refused, and never reaches an engine.
"""

import asyncio
import contextlib
import json
import os
import resource
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from copy import copy
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple

from handbill.serving.errors import SchemaError, UnavailableError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MAX_SCHEMA_CHARS: Final = 16_384
_MAX_DEPTH: Final = 64
# About 4 ms for a token and 40 MB: ten times what schemas of people take.
_LIMITS: Final[dict[str, Any]] = {
    "initial_lexer_fuel": 500_000,
    "step_lexer_fuel": 50_000,
    "step_max_items": 10_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 50_000,
    "verbose_errors": False,
}
# As Python writes JSON, on one line: a model that may put in spaces may put in nothing else.
_STYLE: Final[dict[str, Any]] = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}
# Options of llguidance inside a schema could allow what the schema does not.
_OPTIONS: Final = "x-guidance"
_COSTLY: Final = "response_format: the schema is too complex; split it up, or leave out patterns"
# Of the process that tries schemas, for each of them: at least one second less.
_CPU_S: Final = 2
_MEMORY_BYTES: Final = 512 * 2**20
_REMEMBERED: Final = 256


class Vocabulary(NamedTuple):
    """A tokenizer as another process can take it."""

    tokenizer: str
    size: int
    end: int | None

    @classmethod
    def of(cls, tokenizer: Any) -> "Vocabulary":
        """Of a fast tokenizer of transformers.

        Raises:
            SchemaError: It is not one.
        """
        if not hasattr(tokenizer, "backend_tokenizer"):
            raise SchemaError("response_format: the base model's tokenizer cannot follow a schema")
        backend = copy(tokenizer.backend_tokenizer)
        backend.no_padding()
        backend.no_truncation()
        return cls(backend.to_str(), len(tokenizer), tokenizer.eos_token_id)

    def read(self) -> "LLTokenizer":
        """As llguidance has it; takes about half a second.

        Raises:
            SchemaError: It is of a kind that llguidance does not read.
        """
        from llguidance import LLTokenizer

        try:
            return LLTokenizer(self.tokenizer, n_vocab=self.size, eos_token=self.end)
        except ValueError as error:
            raise SchemaError(
                "response_format: the base model's tokenizer cannot follow a schema"
            ) from error


def match(vocabulary: "LLTokenizer", schema: str) -> "LLMatcher":
    """What follows a text along a schema, at the beginning of the text.

    Raises:
        SchemaError: The schema is too large, or not one that can be followed.
    """
    from llguidance import LLMatcher, LLParserLimits

    grammar = LLMatcher.grammar_from_json_schema(_read(schema), overrides=_STYLE)  # type: ignore[arg-type]
    matcher = LLMatcher(vocabulary, grammar, log_level=0, limits=LLParserLimits(**_LIMITS))
    if not matcher.is_error():
        matcher.compute_bitmask()  # finds what no text can satisfy
    if matcher.is_error():
        reason = " ".join(matcher.get_error().partition("<non-verbose")[0].split())[:160]
        if reason.startswith("NoExtension"):
            reason = "no text satisfies the schema"
        raise SchemaError(f"response_format: {reason or 'the schema is too complex'}")
    return matcher


def styled(schema: str) -> str:
    """The schema with our style of writing JSON in it, for an engine that calls llguidance itself.

    Raises:
        SchemaError: The schema is too large, or not a JSON object.
    """
    return json.dumps({**_read(schema), _OPTIONS: _STYLE})


def _read(schema: str) -> dict[str, Any]:
    if len(schema) > MAX_SCHEMA_CHARS:
        raise SchemaError(
            f"response_format: the schema has {len(schema)} characters; at most {MAX_SCHEMA_CHARS}"
        )
    depth = deepest = 0
    for character in schema:  # brackets in strings count too, which only refuses a strange schema
        depth += (character in "{[") - (character in "}]")
        deepest = max(deepest, depth)
    if deepest > _MAX_DEPTH:
        raise SchemaError(
            f"response_format: the schema is {deepest} levels deep; at most {_MAX_DEPTH}"
        )
    try:
        read = json.loads(schema)
    except ValueError as error:
        raise SchemaError("response_format: the schema is not JSON") from error
    if not isinstance(read, dict):
        raise SchemaError("response_format: the schema is not a JSON object")
    read.pop(_OPTIONS, None)
    return read


class SchemaTrial:
    """Tries schemas in a process of its own, one at a time. Used on one event loop.

    Args:
        tokenizer: A fast tokenizer of transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._process: subprocess.Popen[bytes] | None = None
        self._free = asyncio.Lock()
        # One of a tenant waits for the process, so that the next tenant's is the next.
        self._turns: dict[str, asyncio.Lock] = {}
        # A tenant's own: by the time another's schema takes, nobody learns that it was here.
        self._known: OrderedDict[tuple[str, str], str] = OrderedDict()

    async def check(self, tenant: str, schema: str) -> None:
        """Refuse what an engine could not follow, or only at a cost.

        Raises:
            SchemaError: Why it is refused.
            UnavailableError: The process does not start.
        """
        _read(schema)
        async with self._turns.setdefault(tenant, asyncio.Lock()):
            reason = self._known.pop((tenant, schema), None)
            if reason is None:
                async with self._free:
                    reason = await _whole(asyncio.to_thread(self._tried, schema))
            self._known[tenant, schema] = reason
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        if reason:
            raise SchemaError(reason)

    def close(self) -> None:
        """End the process."""
        self._end()

    def _tried(self, schema: str) -> str:
        """Why a schema is refused; empty when it is not."""
        if self._process is None or self._process.poll() is not None:
            self._end()
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # how the library ends when memory does may tell a schema
            )
            reason = self._answer(self._process, Vocabulary.of(self._tokenizer))
            if reason is None:
                raise UnavailableError("Schemas cannot be read now.")
            if reason:
                return reason
        reason = self._answer(self._process, schema)
        return _COSTLY if reason is None else reason

    def _answer(self, process: subprocess.Popen[bytes], message: Any) -> str | None:
        """What the process says to a message; None when that ended it."""
        line = b""
        if process.stdin is not None and process.stdout is not None:
            with contextlib.suppress(OSError):
                process.stdin.write(json.dumps(message).encode() + b"\n")
                process.stdin.flush()
                line = process.stdout.readline()
        if not line:
            self._end()
            return None
        return str(json.loads(line))

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


async def _whole(work: Coroutine[Any, Any, str]) -> str:
    """Wait for a thread's work, to its end also when nobody wants it any more."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    finally:
        await asyncio.wait([task])


def _serve(asked: IO[bytes], answer: Callable[[str], None]) -> None:
    """What the process does: a vocabulary, then schemas; a line each, and a line for each."""
    try:
        vocabulary = Vocabulary(*json.loads(asked.readline())).read()
    except SchemaError as error:
        answer(str(error))
        return
    answer("")
    os.nice(10)  # the engine is more urgent
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + _MEMORY_BYTES, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in asked:
        used_s = int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))
        resource.setrlimit(resource.RLIMIT_CPU, (used_s + _CPU_S, resource.RLIM_INFINITY))
        reason = ""
        try:
            match(vocabulary, json.loads(line))
        except SchemaError as error:
            reason = str(error)
        answer(reason)


if __name__ == "__main__":
    _serve(sys.stdin.buffer, lambda reason: print(json.dumps(reason), flush=True))  # noqa: T201

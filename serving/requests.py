"""Bodies of requests: OpenAI's shapes, and the product's own."""

import json
import secrets
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from handbill.generator.prompts import CopyRequest
from handbill.serving.config import ServingConfig
from handbill.serving.errors import BadRequestError
from handbill.serving.sequences import Sampling

_TEXT: Final = 20_000
Text = Annotated[str, Field(max_length=_TEXT)]
Field200 = Annotated[str, Field(max_length=200)]

# Sent by clients, of no effect on an answer here.
_IGNORED: Final = {"metadata", "store", "service_tier", "safety_identifier"}
# Not supported, unless they ask for nothing.
_NEUTRAL: Final[dict[str, tuple[Any, ...]]] = {
    "logprobs": (None, False),
    "top_logprobs": (None,),
    "tools": (None, []),
    "tool_choice": (None, "none"),
    "response_format": (None, {"type": "text"}),
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
}


class StreamOptions(BaseModel):
    """What a stream holds beside the text."""

    model_config = ConfigDict(extra="forbid", strict=True)
    include_usage: bool = False
    include_obfuscation: bool = False


class Generation(BaseModel):
    """What all requests for text share."""

    model_config = ConfigDict(extra="forbid", strict=True)
    DEFAULT_TEMPERATURE: ClassVar[float] = 1.0
    DEFAULT_TOP_P: ClassVar[float] = 1.0
    DEFAULT_PENALTY: ClassVar[float] = 1.0

    model: Field200 = "default"
    n: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | list[str] | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[Annotated[int, Field(ge=0, strict=False)], float] | None = None
    no_repeat_ngram_size: int | None = None
    min_tokens: int | None = None
    num_beams: Annotated[int, Field(ge=1)] | None = None
    length_penalty: float | None = None
    early_stopping: bool | Literal["never"] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Field200 | None = None

    @property
    def written_for(self) -> str:
        """Whom the text is for, where the request says so. It is never kept."""
        return self.user or ""

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        return {
            name: value
            for name, value in fields.items()
            if name not in _IGNORED and not (name in _NEUTRAL and value in _NEUTRAL[name])
        }

    def answers(self, config: ServingConfig) -> int:
        """How many answers are asked for.

        Raises:
            BadRequestError: More than the service allows, or than a search finds.
        """
        n, beams = self.n or 1, self.num_beams or 1
        most = config.most_beams
        if beams > most:
            limit = f"at most {most}" if most > 1 else "this service does not search; leave it out"
            raise BadRequestError(f"num_beams={beams}: {limit}", param="num_beams")
        if n > config.max_choices:
            raise BadRequestError(f"n={n}: at most {config.max_choices}", param="n")
        if 1 < beams < n:
            raise BadRequestError(f"n={n}: a search of num_beams={beams} finds no more", param="n")
        return n

    def sampling(self, config: ServingConfig, *, vocabulary: int, tokens: int = 64) -> Sampling:
        """The engine's settings.

        Args:
            config: The service's limits.
            vocabulary: How many tokens there are.
            tokens: The longest answer where the request does not say.

        Raises:
            BadRequestError: ``max_tokens`` is over the service's limit, ``logit_bias`` names no
                token, or a search is to be streamed.
            InputError: Another value is out of range.
        """
        wanted = self.wanted_tokens()
        most = max(wanted or 0, self.max_tokens or 0)
        if most > config.max_tokens:
            raise BadRequestError(
                f"max_tokens={most}: at most {config.max_tokens}", param="max_tokens"
            )
        unknown = [token for token in self.logit_bias or () if token >= vocabulary]
        if unknown:
            raise BadRequestError(
                f"logit_bias: token {unknown[0]}: there are {vocabulary}", param="logit_bias"
            )
        searched = (self.num_beams or 1) > 1
        if searched and self.stream:
            raise BadRequestError(
                "stream: a search has no text before its end; leave out stream or num_beams",
                param="stream",
            )
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Sampling(
            max_tokens=wanted or min(tokens, config.max_tokens),
            temperature=_or(self.temperature, 0.0 if searched else self.DEFAULT_TEMPERATURE),
            top_p=_or(self.top_p, self.DEFAULT_TOP_P),
            seed=secrets.randbits(64) if self.seed is None else self.seed % 2**64,
            top_k=max(self.top_k or 0, 0),  # -1 is off too, as in vLLM
            repetition_penalty=_or(self.repetition_penalty, self.DEFAULT_PENALTY),
            frequency_penalty=self.frequency_penalty or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            logit_bias=tuple((self.logit_bias or {}).items()),
            no_repeat_ngram_size=self.no_repeat_ngram_size or 0,
            min_tokens=self.min_tokens or 0,
            stop=stop,
            num_beams=self.num_beams or 1,
            length_penalty=_or(self.length_penalty, 1.0),
            early_stopping=self.early_stopping or False,
            json_schema=self.schema_text(),
        )

    def schema_text(self) -> str:
        """The JSON schema that the answers follow; empty for none."""
        return ""

    def wanted_tokens(self) -> int | None:
        """The longest answer asked for."""
        return self.max_tokens

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class NamedSchema(BaseModel):
    """A JSON schema as OpenAI's clients send it. It is always kept to, ``strict`` or not."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: Field200 = ""
    description: Text = ""
    json_schema: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """What form an answer has."""

    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.json_schema is None) == (self.type == "json_schema"):
            raise ValueError("type json_schema and the field json_schema belong together")
        return self


class FormattedGeneration(Generation):
    """A request whose answers may have to be JSON."""

    response_format: ResponseFormat | None = None

    def schema_text(self) -> str:
        """The JSON schema that the answers follow; empty for none."""
        if self.response_format is None or self.response_format.type == "text":
            return ""
        named = self.response_format.json_schema
        return json.dumps({"type": "object"} if named is None else named.json_schema)


class TextPart(BaseModel):
    """A piece of a message; only text is understood."""

    model_config = ConfigDict(strict=True)
    type: Literal["text"]
    text: Text


class HouseRuleBody(BaseModel):
    """``POST /v1/claims``; see :meth:`handbill.serving.house.House.add`."""

    model_config = ConfigDict(extra="forbid", strict=True)
    kind: Field200
    value: Text
    evidence: Text = ""


class DecisionBody(BaseModel):
    """``POST /v1/reviews/NUMBER``; see :meth:`handbill.serving.reviews.Reviews.decide`."""

    model_config = ConfigDict(extra="forbid", strict=True)
    decision: Field200
    text: Text = ""


class CheckBody(BaseModel):
    """``/v1/check``: a text, and the product it is about, if its facts are to be checked."""

    model_config = ConfigDict(extra="forbid", strict=True)
    text: Text
    title: Annotated[str, Field(max_length=500)] = ""
    description: Annotated[str, Field(max_length=4000)] = ""
    category: Field200 = ""
    brand: Field200 = ""
    price: Field200 = ""

    def product(self) -> CopyRequest | None:
        """The product; None when nothing but the text was given."""
        if not self.title:
            return None
        return CopyRequest(**self.model_dump(exclude={"text"}))


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid", strict=True)
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(max_length=32)]
    name: Field200 | None = None

    def pair(self) -> tuple[str, str]:
        """Role and text."""
        text = self.content
        if not isinstance(text, str):
            text = "".join(part.text for part in text)
        return ("system" if self.role == "developer" else self.role), text


class ChatBody(FormattedGeneration):
    """``/v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=64)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None

    def wanted_tokens(self) -> int | None:
        """The longest answer asked for, under its new name or its old."""
        return self.max_completion_tokens or self.max_tokens


class CompletionBody(FormattedGeneration):
    """``/v1/completions``. Prompts are text: token ids could hold markers."""

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=8)]

    def texts(self) -> list[str]:
        """The prompts."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


def _or(value: float | None, default: float) -> float:
    return default if value is None else value

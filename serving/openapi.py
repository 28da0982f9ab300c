"""The OpenAPI document: made of the routes and their types, and completed here."""

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from handbill import __version__
from handbill.generator.scenarios import shipped
from handbill.serving.config import ServingConfig
from handbill.serving.documented import ALWAYS
from handbill.serving.experiments.design import ALLOCATIONS, METRICS
from handbill.serving.house import KINDS
from handbill.serving.keys import SCOPES
from handbill.serving.openapi_texts import DESCRIPTION, FIELDS, REFUSALS, TAGS
from handbill.serving.results import ErrorBody
from handbill.serving.reviews import DECISIONS
from handbill.serving.sequences import MAX_BIASES, MAX_STOPS, RANGES

_GENERATION: Final = {"ChatBody", "CompletionBody", "CopyBody"}
_ONE_OF_BOTH: Final = [
    {"required": ["shopper"], "properties": {"everything": {"const": False}}},
    {"required": ["everything"], "properties": {"everything": {"const": True}, "shopper": False}},
]
_WAITS: Final = {"TooMany", "Unavailable"}

# What is checked behind the types: ranges of numbers, and what a text may be.
_RANGES: Final = RANGES | {"top_k": (-1, 2**31)}
_ONE_OF: Final[dict[tuple[str, str], tuple[str, ...]]] = {
    ("CopyBody", "scenario"): tuple(shipped().all),
    ("CopyBody", "tone"): ("", *shipped().tones),
    ("HouseRuleBody", "kind"): KINDS,
    ("DecisionBody", "decision"): tuple(DECISIONS),
    ("ExperimentBody", "metric"): METRICS,
    ("ExperimentBody", "allocation"): ALLOCATIONS,
}


def complete(app: FastAPI, config: ServingConfig) -> None:
    """Have an app make its document with scopes, errors, limits and descriptions in it."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, config)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _document(app: FastAPI, config: ServingConfig) -> dict[str, Any]:
    scopes = "\n".join(f"- `{name}`: {words}" for name, words in SCOPES.items())
    found = get_openapi(
        title="handbill",
        version=__version__,
        description=DESCRIPTION.format(scopes=scopes),
        routes=app.routes,
        tags=[{"name": name, "description": words} for name, words in TAGS.items()],
    )
    parts = found["components"]
    parts["responses"] = {name: _refusal(name) for name in REFUSALS}
    parts["schemas"] |= _error_schemas()
    for name in ("HTTPValidationError", "ValidationError"):
        parts["schemas"].pop(name, None)
    for path, operations in found["paths"].items():
        for operation in operations.values():
            _complete_operation(operation, private=path.startswith("/v1/"))
    most = {"n": config.max_choices, "max_tokens": config.max_tokens}
    most |= {"candidates": min(config.max_choices, config.max_batch)}
    most |= {"max_completion_tokens": config.max_tokens, "min_tokens": config.max_tokens}
    for name, schema in parts["schemas"].items():
        for field, facts in schema.get("properties", {}).items():
            words = FIELDS.get(name, {}).get(field)
            if words:
                facts["description"] = words
            if (name, field) in _ONE_OF:
                facts["enum"] = list(_ONE_OF[name, field])
            if name in _GENERATION:
                for kind in facts.get("anyOf", ()):
                    _bound(field, kind, most)
    spoken = "|".join(shipped().words)
    parts["schemas"]["CopyBody"]["properties"]["language"]["pattern"] = f"^({spoken})([-_].*)?$"
    parts["schemas"]["ForgetBody"]["oneOf"] = _ONE_OF_BOTH
    return found


def _complete_operation(operation: dict[str, Any], *, private: bool) -> None:
    refusals = [*operation.pop("x-refusals", ())]
    operation["summary"] = operation["description"].partition(".")[0]
    answers = operation["responses"]
    if "HTTPValidationError" in str(answers.get("422")):
        del answers["422"]
    if private:
        refusals += ALWAYS
    for name in refusals:
        answers[str(REFUSALS[name][0])] = {"$ref": f"#/components/responses/{name}"}
    operation["responses"] = dict(sorted(answers.items()))
    for answer in answers.values():
        if "$ref" not in answer:
            answer["headers"] = {"x-request-id": _REQUEST_ID}


_REQUEST_ID: Final = {
    "description": "The request's id, in the operator's records too.",
    "schema": {"type": "string"},
}


def _refusal(name: str) -> dict[str, Any]:
    _, about, (kind, code, message) = REFUSALS[name]
    example = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    schema = {"$ref": "#/components/schemas/ErrorBody"}
    headers = {"x-request-id": _REQUEST_ID}
    if name in _WAITS:
        seconds = {"type": "integer", "minimum": 1}
        headers["Retry-After"] = {"description": "Seconds to wait.", "schema": seconds}
    content = {"application/json": {"schema": schema, "example": example}}
    return {"description": about, "headers": headers, "content": content}


def _error_schemas() -> dict[str, Any]:
    schema = ErrorBody.model_json_schema(ref_template="#/components/schemas/{model}")
    return {**schema.pop("$defs"), "ErrorBody": schema}


def _bound(field: str, kind: dict[str, Any], most: dict[str, int]) -> None:
    """Say what an engine's setting may be, if it is given."""
    if kind.get("type", "null") == "null":
        return
    if kind["type"] in {"number", "integer"}:
        if field in _RANGES:
            kind["minimum"], kind["maximum"] = _RANGES[field]
        elif field == "top_p":
            kind["exclusiveMinimum"], kind["maximum"] = 0, 1
        if field in most:
            kind["maximum"] = most[field]
            kind.setdefault("minimum", 0)
    elif field == "stop":
        text = {"type": "string", "minLength": 1, "maxLength": 64}
        kind |= text if kind["type"] == "string" else {"items": text, "maxItems": MAX_STOPS}
    elif field == "logit_bias":
        kind["propertyNames"] = {"pattern": "^[0-9]{1,6}$"}
        kind["additionalProperties"] |= {"minimum": -100, "maximum": 100}
        kind["maxProperties"] = MAX_BIASES

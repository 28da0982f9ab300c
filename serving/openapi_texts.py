"""The words of the OpenAPI document: what it is about, errors, fields of requests."""

from typing import Final

from handbill.generator.scenarios import shipped

DESCRIPTION: Final = """\
Marketing copy from one shared model, each tenant's with its own adapter.

**Keys.** `Authorization: Bearer hb_...`, from the operator. The tenant comes from the key and from nothing
else; what is another tenant's and what does not exist give the same answer. A key has scopes:

{scopes}

**Errors.** Every refusal is `{{"error": {{"message", "type", "param", "code"}}}}`. 429 and 503 come with
`Retry-After`, in seconds: send the same request again then.

**Request ids.** Every answer has `x-request-id`; send your own (letters, digits, `_`, `-`, at most 64) and
it is taken.

**OpenAI's clients** work as they are, with this service's address as `base_url`.
"""
TAGS: Final = {
    "copy": "Copy for products, checked before it is served.",
    "batches": "Many requests for copy, written when there is room beside live requests.",
    "openai": "OpenAI's endpoints, for clients that exist.",
    "feedback": "What shoppers did with copy.",
    "experiments": "Ways of writing, compared.",
    "claims": "What copy may not say, and the queue of copy that waits for a person.",
    "service": "Whether the service works (without a key), and what was used.",
}
# Name: status, what it means, an example's type, code and message.
REFUSALS: Final = {
    "BadRequest": (
        400,
        "A field cannot be used, or the body is not JSON.",
        ("invalid_request_error", "invalid_value", "temperature=3 not in [0.0, 2.0]"),
    ),
    "Unauthorized": (
        401,
        "No key, or an unknown, wrong, revoked or expired one: all one answer.",
        ("authentication_error", "invalid_api_key", "Incorrect API key provided."),
    ),
    "Forbidden": (
        403,
        "The key lacks the scope of this route.",
        ("permission_error", "insufficient_scope", "it lacks the scope 'manage'"),
    ),
    "NotFound": (
        404,
        "The caller has nothing of this name; whether somebody else has is not told.",
        ("invalid_request_error", "not_found", "review 7: no such review"),
    ),
    "Conflict": (
        409,
        "It was done already, or can no longer be done.",
        ("invalid_request_error", "conflict", "experiment exp-0: is stopped already"),
    ),
    "TooLarge": (
        413,
        "The body is larger than the service reads.",
        ("invalid_request_error", "request_too_large", "The request's body is over 65536 bytes."),
    ),
    "Blocked": (
        422,
        "Every candidate says something copy may not say; `error.findings` has the words and rules.",
        ("invalid_request_error", "content_filter", "No candidate passed the check"),
    ),
    "TooMany": (
        429,
        "A limit of the tenant is reached, or too many wrong keys came from this address.",
        ("rate_limit_error", "rate_limit_exceeded", "Rate limit of 600 answers a minute reached."),
    ),
    "Internal": (
        500,
        "A defect of the service; the operator's log has it under the request's id.",
        ("server_error", "internal_error", "Internal error."),
    ),
    "Unavailable": (
        503,
        "The service is full (`overloaded`) or cannot write now (`unavailable`).",
        ("server_error", "overloaded", "The service is busy; try again shortly."),
    ),
}
_TEXT_FIELDS: Final = {
    "model": "`default`, or another name of GET /v1/models. It can only agree with the key.",
    "n": "How many answers.",
    "max_tokens": "Longest answer, in tokens.",
    "temperature": "0 takes the likeliest token.",
    "top_p": "Draw from the likeliest tokens that together reach this probability.",
    "top_k": "Draw from so many likeliest tokens; 0 and -1 are off.",
    "seed": "The same seed gives the same answer, whoever shares the batch.",
    "stop": "Up to 4 strings; the answer ends before the first of them.",
    "repetition_penalty": "Divides the logits of tokens seen, the prompt's too; 1 is off.",
    "frequency_penalty": "Subtracted for every time the answer has the token.",
    "presence_penalty": "Subtracted once the answer has the token.",
    "logit_bias": "Added to the logits of tokens, by id; at most 1024.",
    "no_repeat_ngram_size": "No run of so many tokens comes twice; 0 is off.",
    "min_tokens": "The model does not end the answer before.",
    "user": "Whom the text is for: while a new model is tried on some, the same one gets the same model. Not kept.",
    "num_beams": "Above 1, search for the likeliest answers with so many beams; not streamed.",
    "length_penalty": "Of a search: above 0 favours longer answers.",
    "early_stopping": "Of a search: when it ends, as in transformers.",
    "stream": "Answer as server-sent events; the last is `data: [DONE]`.",
    "stream_options": "What a stream holds beside the text.",
}
_FORMAT: Final = {"response_format": "`json_object`, or a JSON schema that the answer follows."}
_PRODUCT_FIELDS: Final = {
    "title": "The product's name.",
    "description": "What is known of it. Facts that are not given here are not invented: copy with others is blocked.",
    "category": "Its category.",
    "brand": "Its brand.",
    "price": "Its price, as it is to be written.",
}
# Of request bodies: what each field means, for fields whose type does not say it.
FIELDS: Final[dict[str, dict[str, str]]] = {
    "ChatBody": _TEXT_FIELDS
    | _FORMAT
    | {
        "messages": "The conversation so far.",
        "max_completion_tokens": "The newer name of `max_tokens`.",
    },
    "CompletionBody": _TEXT_FIELDS | _FORMAT | {"prompt": "A text to go on with, or several."},
    "CopyBody": _TEXT_FIELDS
    | _PRODUCT_FIELDS
    | {
        "attributes": "Facts of the product, name to value.",
        "insist": "How much likelier the attributes' values become while the copy lacks them, in nats; 0 to 10.",
        "shopper": "The shopper's interests in words; empty for copy for everybody.",
        "events": "What the shopper did just now, the newest last. The next copy follows it.",
        "question": "A shopper's question, for `service_answer`.",
        "reviews": "What buyers wrote, for `review_summary`.",
        "scenario": f"What kind of copy: {', '.join(f'`{name}`' for name in shipped().all)}.",
        "tone": "How it is to sound: a tone of the scenario; empty for none.",
        "language": f"Of the copy: {' or '.join(shipped().words)}, a region may follow (`zh-CN`).",
        "candidates": "Write so many and serve the best `n`.",
        "polish": "Mend grammar and marks. Facts and numbers stay.",
        "explain": "Say what of the prompt each piece of copy comes from, with scores.",
        "label": "Where the words that say that a machine wrote it stand in the text.",
        "review": "Keep copy that is blocked for a person of yours.",
        "feedback": "Keep request and text with the copy's id, locked, to learn from.",
        "shopper_key": "Stands for the shopper; only events of the same are taken.",
        "experiment": "Id of an experiment: the shopper's variant decides what it varies.",
    },
    "RecentEvent": {
        "kind": "What the shopper did.",
        "text": "The product's name, or what was searched for.",
    },
    "ResponseFormat": {
        "type": "`text`, `json_object` or `json_schema`.",
        "json_schema": "The schema, with type `json_schema`.",
    },
    "NamedSchema": {
        "name": "Of no effect.",
        "description": "Of no effect.",
        "schema": "The JSON schema. It is always kept to.",
        "strict": "Of no effect.",
    },
    "Message": {
        "role": "Whose turn it is; `developer` is `system`.",
        "content": "The text, or pieces of text.",
        "name": "Of no effect.",
    },
    "TextPart": {"type": "Only text is understood.", "text": "The text."},
    "StreamOptions": {
        "include_usage": "End the stream with what it cost.",
        "include_obfuscation": "Of no effect.",
    },
    "CheckBody": {"text": "The text to check."} | _PRODUCT_FIELDS,
    "HouseRuleBody": {
        "kind": "`permit`, `brand` or `protect`.",
        "value": "A rule's id, a brand of others, or a text that copy may not repeat.",
        "evidence": "Of a permission: what substantiates the claim.",
    },
    "DecisionBody": {
        "decision": "`approve`, `edit` or `reject`.",
        "text": "Of an edit, the new text.",
    },
    "EventBody": {
        "id": "Your name of the event: sent again, it is taken once.",
        "copy_id": "The piece of copy it is about.",
        "kind": "What the shopper did.",
        "shopper": "Stands for the shopper: always the same for the same one, and no name or address.",
        "time": "When it happened; when it was received if not given.",
        "value": "Of a conversion, what it was worth to the shop.",
    },
    "EventsBody": {
        "events": "The events.",
        "partial": "Answer 200 also when every event is refused.",
    },
    "ForgetBody": {
        "shopper": "Delete all of this shopper.",
        "everything": "Delete all of yours, and the key it was locked with.",
    },
    "VariantBody": {
        "name": "Its name.",
        "settings": "Fields of the request for copy that it fixes.",
        "adapter": "`own`, `global`, `base` or a digest; what you are served anyway when empty.",
        "share": "Of the shoppers, in proportion to the others'.",
    },
    "ExperimentBody": {
        "name": "Its name.",
        "variants": "The first is what the others are compared with.",
        "metric": "What of a shopper counts: `click` or `conversion`.",
        "allocation": "`fixed` shares, or a bandit's (`thompson`).",
        "min_share": "A bandit gives every variant at least this share.",
        "window_hours": "How long after a shopper's first sight of copy counts.",
        "alpha": "How often chance may be taken for a difference.",
    },
}

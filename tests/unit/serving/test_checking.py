"""Copy is checked before it is served; chats are served with their findings."""

import asyncio
import json

import pytest

from handbill.serving.repository import Repository

COPY = {"title": "Oak desk lamp", "description": "12 W", "price": "£29"}
GOOD, BAD = "A warm lamp for late reading.", "The best lamp in the world."


def events(answer):
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def test_a_blocked_copy_is_not_served_and_another_is_written(scripted):
    service = scripted(BAD, GOOD)
    answer = service.post("/v1/copy", COPY | {"seed": 7}).json()
    assert [copy["text"] for copy in answer["copies"]] == [GOOD]
    assert answer["blocked"] == []
    assert [asked.sampling.seed for asked in service.engine.asked] == [7, 8]
    assert BAD not in json.dumps(answer)


def test_what_both_candidates_cost_is_counted_in_one_row(scripted):
    service = scripted(BAD, GOOD)
    answer = service.post("/v1/copy", COPY).json()
    tokens = -(-len(BAD) // 3) + -(-len(GOOD) // 3)
    assert answer["usage"]["completion_tokens"] == tokens
    (row,) = service.usage()
    assert row.completion_tokens == tokens


def test_when_all_are_blocked_the_answer_says_which_words_and_which_rule(scripted):
    service = scripted(BAD, copy_attempts=2)
    answer = service.post("/v1/copy", COPY)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["code"] == "content_filter"
    finding = error["findings"][0]
    assert BAD[finding["start"] : finding["end"]] == finding["text"] == "The best"
    assert finding["rule"] == "en.superlative.best"
    assert len(service.engine.asked) == 2


def test_the_likeliest_copy_is_not_asked_for_twice(scripted):
    service = scripted(BAD, GOOD)
    service.post("/v1/copy", COPY | {"temperature": 0})
    assert [asked.sampling.temperature for asked in service.engine.asked] == [0, 0.7]


def test_no_two_candidates_of_a_request_share_a_seed(scripted):
    service = scripted(BAD)
    service.post("/v1/copy", COPY | {"n": 3, "seed": 5})
    seeds = [asked.sampling.seed for asked in service.engine.asked]
    assert sorted(seeds) == list(range(5, 14))


def test_of_several_copies_those_that_pass_are_served(scripted):
    service = scripted(GOOD, BAD, copy_attempts=1)
    answer = service.post("/v1/copy", COPY | {"n": 2}).json()
    assert [copy["text"] for copy in answer["copies"]] == [GOOD]
    assert [[f["rule"] for f in blocked["findings"]] for blocked in answer["blocked"]] == [
        ["en.superlative.best", "en.superlative.emphatic"]
    ]


def test_a_stream_of_copy_holds_no_word_that_was_not_checked(scripted):
    answer = scripted(BAD, GOOD).post("/v1/copy", COPY | {"stream": True})
    assert [chunk["text"] for chunk in events(answer)[:-1]] == [GOOD]
    assert BAD[:6] not in answer.text


def test_a_stream_that_is_blocked_ends_with_content_filter_and_findings(scripted):
    service = scripted(BAD)
    chunks = events(service.post("/v1/copy", COPY | {"stream": True}))
    assert [(c["text"], c["finish_reason"]) for c in chunks[:-1]] == [("", "content_filter")]
    assert chunks[0]["findings"][0]["rule"] == "en.superlative.best"


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("A 40 W lamp.", "fact.quantity"),
        ("Now £19.", "fact.price"),
        ("Half price.", "fact.percent"),
        ("FDA on the box.", "fact.certificate"),
        ("Call 138 1234 5678.", "personal.phone"),
    ],
)
def test_facts_nobody_gave_and_personal_data_are_blocked(scripted, text, rule):
    answer = scripted(text, copy_attempts=1).post("/v1/copy", COPY)
    assert answer.status_code == 422
    assert [finding["rule"] for finding in answer.json()["error"]["findings"]] == [rule]
    assert "1234" not in answer.text


def test_facts_of_the_product_pass(scripted):
    assert scripted("12 watts for £29.").post("/v1/copy", COPY).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_is_served_as_it_is_with_findings_beside_it(scripted, stream):
    service = scripted(BAD)
    body = {"messages": [{"role": "user", "content": "Hi"}], "stream": stream}
    answer = service.post("/v1/chat/completions", body)
    if stream:
        chunks = events(answer)
        assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == BAD
        last = chunks[-1]["choices"][0]
    else:
        last = answer.json()["choices"][0]
        assert last["message"]["content"] == BAD
    assert last["finish_reason"] == "stop"
    assert last["findings"][0]["rule"] == "en.superlative.best"


def test_an_answer_without_findings_has_openais_fields_only(scripted):
    answer = scripted(GOOD).post("/v1/completions", {"prompt": "Hi"}).json()
    assert answer["choices"][0].keys() == {"index", "text", "logprobs", "finish_reason"}


def test_every_copy_says_that_a_machine_wrote_it(scripted):
    service = scripted(GOOD)
    origin = service.post("/v1/copy", COPY).json()["ai_generated"]
    assert origin["label"] == "AI-generated"
    assert origin["model"] == service.digests["acme"]
    streamed = events(service.post("/v1/copy", COPY | {"stream": True}))
    assert streamed[-1]["ai_generated"]["label"] == "AI-generated"


@pytest.mark.parametrize(
    ("language", "place", "text"),
    [
        ("en", "none", GOOD),
        ("en", "end", f"{GOOD} [AI-generated]"),
        ("zh-CN", "start", f"[AI 生成] {GOOD}"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_the_label_can_stand_in_the_text(scripted, language, place, text, stream):
    body = COPY | {"language": language, "label": place, "stream": stream}
    answer = scripted(GOOD).post("/v1/copy", body)
    assert (events(answer)[0] if stream else answer.json()["copies"][0])["text"] == text


def test_a_client_that_goes_away_stops_the_candidate(scripted):
    service = scripted(BAD * 50, GOOD)

    async def leave():
        from handbill.serving.checking import approved

        stream = approved(lambda _: service.engine.submit(None), lambda _: [], attempts=2)
        await anext(stream)
        await stream.aclose()

    asyncio.run(leave())
    assert service.engine.open == 0


# -- house rules ---------------------------------------------------------------------------------


def test_substantiation_permits_a_rule_for_its_tenant_alone(scripted):
    service = scripted("An award-winning lamp.", copy_attempts=1)
    proof = {"kind": "permit", "value": "en.superlative.rank", "evidence": "Lamp prize 2024, p. 3"}
    made = service.post("/v1/claims", proof)
    assert made.status_code == 201
    assert service.post("/v1/copy", COPY).status_code == 200
    assert service.post("/v1/copy", COPY, tenant="bolt").status_code == 422
    listed = service.send("GET", "/v1/claims").json()["data"]
    assert [(row["value"], row["evidence"]) for row in listed] == [
        ("en.superlative.rank", "Lamp prize 2024, p. 3")
    ]
    assert service.send("GET", "/v1/claims", tenant="bolt").json()["data"] == []
    path = f"/v1/claims/{made.json()['id']}"
    assert service.send("DELETE", path, tenant="bolt").status_code == 404
    assert service.send("DELETE", path).status_code == 204
    assert service.post("/v1/copy", COPY).status_code == 422
    assert service.send("GET", "/v1/claims", tenant=None).status_code == 401


def test_a_brand_or_a_text_that_a_tenant_names_is_kept_out(scripted):
    service = scripted("Brighter days with Glowmax.", copy_attempts=1)
    assert service.post("/v1/copy", COPY).status_code == 200
    service.post("/v1/claims", {"kind": "brand", "value": "Glowmax"})
    assert service.post("/v1/copy", COPY).status_code == 422


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"kind": "permit", "value": "en.green"}, "evidence"),
        ({"kind": "permit", "value": "en.toxic.insult", "evidence": "x"}, "rule"),
        ({"kind": "permit", "value": "no.such", "evidence": "x"}, "rule"),
        ({"kind": "wish", "value": "x"}, "kind"),
        ({"kind": "brand", "value": "  "}, "value"),
        ({"kind": "protect", "value": "x" * 1001}, "value"),
    ],
)
def test_a_house_rule_that_cannot_be_is_refused(service, body, word):
    answer = service.post("/v1/claims", body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == word
    assert Repository(service.config.url).house_rules("acme") == []


def test_checks_count_for_the_rate_as_answers_do(make_service):
    service = make_service(burst=8, requests_per_minute=0.001)
    codes = [service.post("/v1/check", {"text": "A lamp"}).status_code for _ in range(9)]
    assert codes == [200] * 8 + [429]


def test_findings_are_placed_in_the_text_that_is_served(scripted):
    copy = scripted("  A perfect lamp.\n").post("/v1/copy", COPY).json()["copies"][0]
    (finding,) = copy["findings"]
    assert finding["severity"] == "warn"
    assert copy["text"][finding["start"] : finding["end"]] == finding["text"] == "perfect"


def test_a_text_can_be_checked_alone_and_against_a_product(service):
    body = {"text": "The best lamp, now £19"}
    alone = service.post("/v1/check", body).json()
    assert {f["rule"] for f in alone["findings"]} == {
        "en.superlative.best",
        "en.superlative.emphatic",
    }
    assert alone["blocked"]
    known = service.post("/v1/check", body | {"title": "Lamp", "price": "£29"}).json()
    assert "fact.price" in {f["rule"] for f in known["findings"]}
    assert service.send("POST", "/v1/check", json=body, tenant=None).status_code == 401


# -- the review queue ----------------------------------------------------------------------------


def queue(service, state="pending", **how):
    return service.send("GET", f"/v1/reviews?state={state}", **how).json()["data"]


def test_no_text_is_kept_unless_the_request_asks_for_it(scripted):
    service = scripted(BAD)
    assert service.post("/v1/copy", COPY).json()["error"]["reviews"] == []
    assert queue(service) == []
    for file in service.config.state.glob("serving.db*"):
        assert b"best lamp" not in file.read_bytes()


@pytest.mark.parametrize("stream", [False, True])
def test_a_blocked_copy_is_kept_once_with_its_findings(scripted, stream):
    service = scripted(BAD)
    answer = service.post("/v1/copy", COPY | {"review": True, "stream": stream})
    number = events(answer)[0]["review"] if stream else answer.json()["error"]["reviews"][0]
    (row,) = queue(service)
    assert (row["id"], row["text"], row["title"]) == (number, BAD, "Oak desk lamp")
    assert row["findings"][0]["rule"] == "en.superlative.best"
    assert row["version"] == service.digests["acme"]
    assert queue(service, tenant="bolt") == []


def test_a_copy_that_passed_is_not_kept(scripted):
    service = scripted(BAD, GOOD)
    service.post("/v1/copy", COPY | {"review": True})
    assert queue(service) == []


def test_personal_data_is_masked_before_it_is_kept(scripted):
    service = scripted("The best: call 138 1234 5678.")
    service.post("/v1/copy", COPY | {"review": True})
    assert queue(service)[0]["text"] == "The best: call [phone]."
    for file in service.config.state.glob("serving.db*"):
        assert b"1234 5678" not in file.read_bytes()


@pytest.mark.parametrize(
    ("body", "state", "text"),
    [
        ({"decision": "approve"}, "approved", BAD),
        ({"decision": "edit", "text": " A warm lamp. "}, "edited", "A warm lamp."),
        ({"decision": "reject"}, "rejected", ""),
    ],
)
def test_a_decision_is_the_tenants_own_and_final(scripted, body, state, text):
    service = scripted(BAD)
    service.post("/v1/copy", COPY | {"review": True})
    (row,) = queue(service)
    path = f"/v1/reviews/{row['id']}"
    assert service.post(path, body, tenant="bolt").status_code == 404
    assert service.post(path, body, tenant=None).status_code == 401
    decided = service.post(path, body).json()
    assert (decided["state"], decided["text"]) == (state, text)
    assert decided["decided_by"] == service.keys["acme"].split("_")[1][:8]
    assert service.post(path, {"decision": "approve"}).status_code == 409
    assert queue(service) == []
    assert [kept["text"] for kept in queue(service, state)] == [text]


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"decision": "maybe"}, "decision"),
        ({"decision": "edit"}, "text"),
        ({"decision": "approve", "text": "x"}, "text"),
    ],
)
def test_a_decision_that_cannot_be_is_refused(scripted, body, word):
    service = scripted(BAD)
    service.post("/v1/copy", COPY | {"review": True})
    answer = service.post(f"/v1/reviews/{queue(service)[0]['id']}", body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == word
    assert len(queue(service)) == 1


def test_a_full_queue_takes_no_more(scripted, monkeypatch):
    monkeypatch.setattr("handbill.serving.repository.MAX_PENDING_REVIEWS", 1)
    service = scripted(BAD)
    ids = [
        service.post("/v1/copy", COPY | {"review": True}).json()["error"]["reviews"]
        for _ in range(2)
    ]
    assert [len(numbers) for numbers in ids] == [1, 0]

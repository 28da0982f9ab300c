"""What is done to copy after it was written: the best candidate, polish; and what it is written after."""

import json

import numpy as np
import pytest

from handbill.generator.copies import Copy
from handbill.generator.polish import Change, polish
from handbill.generator.prompts import CopyRequest
from handbill.generator.scenarios import read_scenarios
from handbill.generator.sentiment import N_BUCKETS, SentimentModel, buckets_of

COPY = {"title": "Oak desk lamp", "description": "12 W", "price": "£29"}
GOOD, BAD = "A warm lamp for late reading.", "The best lamp in the world."
OAK = "An oak lamp for late reading."


def events(answer):
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def texts(answer):
    return [piece["text"] for piece in answer.json()["copies"]]


# -- candidates ----------------------------------------------------------------------------------


def test_the_candidate_that_states_the_products_facts_wins(scripted):
    service = scripted(GOOD, OAK, GOOD)
    body = COPY | {"candidates": 3, "attributes": {"material": "oak"}, "seed": 7}
    answer = service.post("/v1/copy", body)
    assert texts(answer) == [OAK]
    chosen = answer.json()["copies"][0]["chosen"]
    assert (chosen["candidates"], chosen["passed"]) == (3, 3)
    assert chosen["parts"]["coverage"] == 1.0
    # All of one prompt, each with a seed of its own.
    assert len({asked.prompt for asked in service.engine.asked}) == 1
    assert [asked.sampling.seed for asked in service.engine.asked] == [7, 8, 9]


def test_a_request_can_insist_on_its_attributes(scripted):
    service = scripted(OAK)
    body = COPY | {"attributes": {"material": "Oak", "wood": "Oak", "light": "warm"}}
    service.post("/v1/copy", body | {"insist": 2.5})
    service.post("/v1/copy", body)
    insisted, plain = (asked.sampling for asked in service.engine.asked)
    said = [{service.tokenizer.decode(way) for way in one} for one in insisted.phrases]
    assert said == [{" Oak", "Oak", " oak"}, {" warm", "warm"}]
    assert insisted.insist == 2.5
    assert (plain.phrases, plain.insist) == ((), 0.0)
    refused = service.post("/v1/copy", body | {"insist": 11})
    assert refused.status_code == 400
    assert "insist" in refused.json()["error"]["message"]


def test_a_blocked_candidate_never_wins_whatever_it_covers(scripted):
    body = COPY | {"candidates": 3, "attributes": {"material": "oak", "use": "world"}}
    answer = scripted(GOOD, f"{BAD} Oak.", BAD).post("/v1/copy", body)
    assert texts(answer) == [GOOD]
    assert answer.json()["copies"][0]["chosen"]["passed"] == 1
    assert BAD not in answer.text


def test_an_empty_candidate_never_wins_over_words(scripted):
    assert texts(scripted("   ", GOOD).post("/v1/copy", COPY | {"candidates": 2})) == [GOOD]


def test_when_all_are_blocked_none_is_served_and_no_more_are_written(scripted):
    service = scripted(BAD)
    assert service.post("/v1/copy", COPY | {"candidates": 3}).status_code == 422
    assert len(service.engine.asked) == 3


def test_of_several_copies_the_second_is_chosen_to_differ(scripted):
    other = "Oak and twelve watts of soft light on your desk."
    service = scripted(OAK, f"{OAK[:-1]} books.", other)
    body = COPY | {"candidates": 3, "n": 2, "attributes": {"material": "oak"}}
    first, second = texts(service.post("/v1/copy", body))
    assert {first, second} == {OAK, other}


def test_the_tone_that_is_asked_for_decides_where_the_operator_has_a_model_of_it(scripted):
    glad, sad = "Lovely light, a joy.", "Some light, no joy at all."
    weights = np.zeros(N_BUCKETS, np.float32)
    weights[list(buckets_of("lovely"))] = 9.0
    model = SentimentModel(weights, np.ones(N_BUCKETS, np.float32), -1.0, {})
    service = scripted(sad, glad)
    model.save(service.config.sentiment_file)
    answer = service.post("/v1/copy", COPY | {"candidates": 2, "tone": "warm"})
    assert texts(answer) == [glad]
    parts = answer.json()["copies"][0]["chosen"]["parts"]
    assert parts["tone"] > 0.5
    plain = service.post("/v1/copy", COPY | {"candidates": 2}).json()["copies"][0]
    assert "tone" not in plain["chosen"]["parts"]


def test_a_stream_has_the_best_when_all_are_written(scripted):
    body = COPY | {"candidates": 2, "attributes": {"material": "oak"}, "stream": True}
    chunks = events(scripted(GOOD, OAK).post("/v1/copy", body))
    assert [chunk["text"] for chunk in chunks[:-1]] == [OAK]
    assert chunks[0]["chosen"]["passed"] == 2


def test_all_candidates_cost_and_no_more_are_written_than_asked(scripted):
    service = scripted(GOOD, OAK)
    answer = service.post("/v1/copy", COPY | {"candidates": 2}).json()
    cost = -(-len(GOOD) // 3) + -(-len(OAK) // 3)
    assert answer["usage"]["completion_tokens"] == cost
    (row,) = service.usage()
    assert row.completion_tokens == cost


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"candidates": 2, "n": 3}, "at least n=3, at most 8"),
        ({"candidates": 9}, "at most 8"),
        ({"candidates": 3, "num_beams": 2}, "leave out candidates or num_beams"),
        ({"candidates": 0}, ""),
    ],
)
def test_candidates_that_cannot_be_are_a_400(service, body, words):
    answer = service.post("/v1/copy", COPY | body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "candidates"
    assert words in answer.json()["error"]["message"]


def test_candidates_of_a_real_engine_are_what_n_answers_are(service):
    body = {"title": "Oak desk lamp", "max_tokens": 6, "seed": 4}
    several = texts(service.post("/v1/copy", body | {"n": 3}))
    (best,) = texts(service.post("/v1/copy", body | {"candidates": 3}))
    assert best in several


# -- polish --------------------------------------------------------------------------------------


def test_polish_mends_and_says_what(scripted):
    service = scripted("It is an warm lamp , for the the late reader.")
    piece = service.post("/v1/copy", COPY | {"polish": True}).json()["copies"][0]
    assert piece["text"] == "It is a warm lamp, for the late reader."
    assert ("an", "a") in {(one["before"], one["after"]) for one in piece["polished"]}
    plain = service.post("/v1/copy", COPY).json()["copies"][0]
    assert plain["text"] == "It is an warm lamp , for the the late reader."
    assert "polished" not in plain


def test_nothing_to_mend_is_said_too(scripted):
    piece = scripted(GOOD).post("/v1/copy", COPY | {"polish": True}).json()["copies"][0]
    assert (piece["text"], piece["polished"]) == (GOOD, [])


@pytest.mark.parametrize(
    ("text", "worse"),
    [
        ("A lamp for £29.", "A lamp for £19."),
        ("A lamp for £29.", "A lamp."),
        ("Two lamps of 12 W.", "Two lamps of 21 W."),
        ("An oak lamp.", "A lamp."),
        ("An oak lamp.", "An oak lamp, half price."),
        ("An oak lamp.", "An oak lamp, 5 left."),
    ],
)
def test_a_polished_text_with_other_facts_is_refused_and_the_text_stands(text, worse):
    copy = Copy(
        id="1",
        text=text,
        request=CopyRequest(title="Lamp", description="12 W", price="£29"),
        attributes=(("material", "oak"),),
    )
    change = Change(before=text, after=worse, rule="wild")
    assert polish(copy, lambda _: (worse, [change])) == (text, [])
    better = text.replace("lamp", "desk lamp")
    assert polish(copy, lambda _: (better, [change])) == (better, [change])


def test_the_check_comes_after_polish_too(scripted):
    # Taking out the doubled 是 would make a forbidden brand of what was none.
    text = "这盏灯是是亮牌的。"
    service = scripted(text)
    body = COPY | {"polish": True, "language": "zh"}
    assert texts(service.post("/v1/copy", body)) == ["这盏灯是亮牌的。"]
    service.post("/v1/claims", {"kind": "brand", "value": "灯是亮"})
    assert texts(service.post("/v1/copy", body)) == [text]


# -- what copy is written after ------------------------------------------------------------------


def prompt_of(service, body):
    assert service.post("/v1/copy", body).status_code == 200
    return service.tokenizer.decode(service.engine.asked[-1].prompt)


def test_what_a_shopper_did_just_now_changes_the_next_prompt(scripted):
    service = scripted(GOOD)
    shopper = COPY | {"shopper": "reads at night"}
    first = {"kind": "search", "text": "spring dress"}
    before = prompt_of(service, shopper)
    after = prompt_of(service, shopper | {"events": [first]})
    newest = prompt_of(service, shopper | {"events": [first, {"kind": "purchase", "text": "hat"}]})
    assert "Shopper: reads at night" in before
    assert "Shopper: just now searched for spring dress; reads at night" in after
    assert "just now bought hat; searched for spring dress; reads" in newest
    chinese = [{"kind": "cart", "text": "登山杖"}, {"kind": "view", "text": "帐篷"}]
    body = COPY | {"language": "zh", "shopper": "喜欢旅行", "events": chinese}
    assert "顾客：刚才看了帐篷；把登山杖放进购物车；喜欢旅行" in prompt_of(service, body)


def test_what_a_shopper_did_changes_what_a_real_model_writes(service):
    body = {"title": "Lamp", "max_tokens": 12, "temperature": 0}
    event = {"kind": "search", "text": "spring dress"}
    assert texts(service.post("/v1/copy", body)) != texts(
        service.post("/v1/copy", body | {"events": [event]})
    )


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"scenario": "poem"}, "scenario", "ad_body, ad_headline, customer_care"),
        ({"tone": "velvety"}, "tone", "plain, warm, playful"),
        ({"scenario": "service_answer", "question": "?", "tone": "playful"}, "tone", "plain, warm"),
        ({"language": "tlh"}, "language", "en, zh"),
        ({"scenario": "service_answer"}, "question", "needs it"),
        ({"scenario": "review_summary"}, "reviews", "needs it"),
        ({"events": [{"kind": "wish", "text": "x"}]}, "events.0.kind", "view"),
        ({"attributes": {"material": 3}}, "attributes.material", "string"),
    ],
)
def test_what_there_is_not_is_a_400_that_lists_what_there_is(service, body, param, words):
    answer = service.post("/v1/copy", COPY | body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param
    assert words in error["message"]


def test_a_scenarios_rules_hold_in_the_service(scripted):
    service = scripted("On sale now!", GOOD)
    body = COPY | {"scenario": "promotion"}
    assert texts(service.post("/v1/copy", body)) == [GOOD]
    known = body | {"description": "Deep discount in spring."}
    service.engine.texts = ["On sale now!"]
    assert texts(service.post("/v1/copy", known)) == ["On sale now!"]


def test_a_scenario_decides_how_long_an_answer_is_at_most(scripted):
    service = scripted(GOOD)
    service.post("/v1/copy", COPY | {"scenario": "ad_headline"})
    service.post("/v1/copy", COPY | {"scenario": "ad_headline", "max_tokens": 9})
    service.post("/v1/copy", COPY)
    assert [asked.sampling.max_tokens for asked in service.engine.asked] == [24, 9, 64]


def test_the_log_says_once_when_an_own_adapter_is_asked_otherwise_than_it_was_trained(
    scripted, publisher, adapters, tmp_path, caplog
):
    def told():
        return [r for r in caplog.records if r.message == "scenarios_differ_from_training"]

    service = scripted(GOOD)
    own = tmp_path / "own.toml"
    own.write_text('[haiku]\nabout = "x"\nen = { instruction = "Write a haiku." }\n')
    service.post("/v1/copy", COPY)
    assert told() == []  # trained and served with the shipped ones
    service.gateway.scenarios.put("acme", own)
    service.post("/v1/copy", COPY)
    service.post("/v1/copy", COPY)
    service.post("/v1/copy", COPY, tenant="bolt")
    (first,) = told()
    prompts = read_scenarios(own).prompts
    assert (first.tenant, first.trained_with, first.served_with) == ("acme", "shipped", prompts)
    again = publisher.seal(adapters.folder(1), "acme", version=3, prompts=prompts)
    publisher.point("acme", again)
    service.gateway._registry.refresh()
    service.post("/v1/copy", COPY)
    assert len(told()) == 1  # trained with the file it is served with
    service.gateway.scenarios.remove("acme")
    service.post("/v1/copy", COPY)
    assert [told()[-1].trained_with, told()[-1].served_with] == [prompts, "shipped"]


def test_a_tenants_own_scenarios_are_its_alone_and_in_effect_at_once(scripted, tmp_path):
    service = scripted(GOOD)
    own = tmp_path / "own.toml"
    own.write_text('[haiku]\nabout = "x"\nen = { instruction = "Write a haiku." }\n')
    body = COPY | {"scenario": "haiku"}
    assert service.post("/v1/copy", body).status_code == 400
    service.gateway.scenarios.put("acme", own)
    assert "Write a haiku." in prompt_of(service, body)
    assert service.post("/v1/copy", body, tenant="bolt").status_code == 400
    # A file that becomes wrong changes nothing.
    service.gateway.scenarios.file("acme").write_text("[haiku")
    assert "Write a haiku." in prompt_of(service, body)
    service.gateway.scenarios.remove("acme")
    assert service.post("/v1/copy", body).status_code == 400

"""``/v1/experiments``: shoppers are parted once, and what is reported is what they did."""

import json
import sqlite3
from collections import Counter
from datetime import timedelta

import pytest

from handbill.serving.experiments import trials
from handbill.serving.experiments.allocation import unit_draw
from handbill.serving.orm import utc_now

TEXT = "A warm lamp for late reading."
PLAIN = {"title": "Oak desk lamp"}
TWO = {
    "name": "tone",
    "variants": [
        {"name": "plain"},
        {"name": "warm", "settings": {"tone": "warm", "temperature": 0.2}},
    ],
    "window_hours": 1,
}

REFUSED = [
    ({"variants": TWO["variants"][:1]}, "variants"),
    ({"variants": [{"name": "a"}, {"name": "a"}]}, "the same name"),
    ({"variants": [{"name": "a"}, {"name": "b", "settings": {"title": "x"}}]}, "cannot vary"),
    ({"variants": [{"name": "a"}, {"name": "b", "settings": {"temperature": 9}}]}, "temperature"),
    ({"variants": [{"name": "a"}, {"name": "b", "settings": {"scenario": "song"}}]}, "scenario"),
    ({"variants": [{"name": "a"}, {"name": "b", "settings": {"tone": 3}}]}, "b: tone"),
    ({"variants": [{"name": "a"}, {"name": "b", "adapter": "bolt"}]}, "adapter"),
    ({"min_share": 0.6}, "min_share"),
    ({"metric": "joy"}, "metric"),
    ({"allocation": "luck"}, "allocation"),
    ({"alpha": 0}, "alpha"),
    ({"window_hours": 24 * 100}, "window_hours"),
]


@pytest.fixture(autouse=True)
def drawn_alike(monkeypatch):
    """The same in every run: by who came first, for keys and ids are drawn anew in each."""
    numbers: dict[str, int] = {}

    def draw(_key, *labels):
        return unit_draw(b"key", *(str(numbers.setdefault(one, len(numbers))) for one in labels))

    monkeypatch.setattr(trials, "unit_draw", draw)


@pytest.fixture
def shop(scripted):
    return scripted(TEXT, requests_per_minute=1e6, burst=10_000)


def make(service, body=TWO, **fields):
    answer = service.post("/v1/experiments", body | fields)
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


def ask(service, experiment, shopper, **how):
    body = PLAIN | {"experiment": experiment, "shopper_key": shopper}
    return service.post("/v1/copy", body, **how)


def given(service, experiment, shopper):
    return ask(service, experiment, shopper).json()["experiment"]["variant"]


def show(service, experiment, **how):
    return service.send("GET", f"/v1/experiments/{experiment}", **how)


def live_through(service, experiment, shoppers, clicks):
    """Serve, show, and let some click; then let the window pass."""
    for number in range(shoppers):
        answer = ask(service, experiment, f"s{number}").json()
        copy, variant = answer["copies"][0]["copy_id"], answer["experiment"]["variant"]
        kinds = ["impression", "impression"] + ["click"] * clicks(variant, number)
        events = [
            {"id": f"{number}-{n}", "copy_id": copy, "kind": kind, "shopper": f"s{number}"}
            for n, kind in enumerate(kinds)
        ]
        assert service.post("/v1/events", {"events": events}).json()["accepted"] == len(events)
    later(service)


def later(service, hours=2):
    with sqlite3.connect(service.config.state / "serving.db") as database:
        for table, column in (("feedback_event", "received_at"), ("assignment", "assigned_at")):
            rows = database.execute(f"select rowid, {column} from {table}").fetchall()  # noqa: S608
            for row, time in rows:
                shifted = f"datetime('{time}', '-{hours} hours')"
                database.execute(f"update {table} set {column} = {shifted} where rowid = {row}")  # noqa: S608


def test_a_shopper_is_given_one_variant_and_both_get_their_part(shop):
    experiment = make(shop)
    first = [given(shop, experiment, f"s{n}") for n in range(60)]
    assert [given(shop, experiment, f"s{n}") for n in range(60)] == first
    counts = Counter(first)
    assert min(counts["plain"], counts["warm"]) > 15
    other = make(shop)
    assert [given(shop, other, f"s{n}") for n in range(60)] != first


def test_the_variant_decides_how_copy_is_asked_for(shop):
    experiment = make(shop)
    seen = {}
    for n in range(20):
        variant = given(shop, experiment, f"s{n}")
        seen[variant] = shop.engine.asked[-1]
    assert seen["plain"].sampling.temperature == 0.7
    assert seen["warm"].sampling.temperature == 0.2
    prompts = {name: shop.tokenizer.decode(asked.prompt) for name, asked in seen.items()}
    assert "Tone: warm" in prompts["warm"]
    assert "Tone" not in prompts["plain"]


def test_variants_may_be_written_by_other_published_adapters(shop, publisher):
    variants = [{"name": name, "adapter": name} for name in ("own", "global", "base")]
    experiment = make(shop, variants=variants)
    seen = {}
    for n in range(40):
        answer = ask(shop, experiment, f"s{n}").json()
        seen[answer["experiment"]["variant"]] = answer["version"]
    digests = {"own": shop.digests["acme"], "global": shop.digests[""]}
    assert seen == digests | {"base": publisher.base.digest}
    pinned = make(shop, variants=[{"name": "a"}, {"name": "b", "adapter": shop.digests["bolt"]}])
    codes = {ask(shop, pinned, f"s{n}").status_code for n in range(20)}
    assert codes == {200, 503}  # another tenant's adapter cannot be had this way either


def test_what_shoppers_did_is_counted_by_shopper(shop):
    experiment = make(shop)
    live_through(shop, experiment, 60, lambda variant, n: 2 * (variant == "warm" and n % 2))
    result = show(shop, experiment).json()["result"]
    assert (result["shoppers"], result["waiting"]) == (60, 0)
    plain, warm = result["variants"]
    assert plain["shoppers"] + warm["shoppers"] == 60
    assert warm["impressions"] == 2 * warm["shoppers"]
    assert plain["clicks"] == 0
    assert warm["clicks"] % 2 == 0
    clicked = warm["clicks"] // 2
    assert warm["click_rate"]["value"] == pytest.approx(clicked / warm["shoppers"])
    low, high = warm["click_rate"]["always_valid"]
    inner_low, inner_high = warm["click_rate"]["interval"]
    assert low < inner_low < inner_high < high
    assert result["different"] == ["warm"]
    assert result["best"] == "warm"
    assert warm["against_first"]["p"] < 0.05 < result["sample_ratio_p"]
    assert not result["broken"]
    assert {"ips", "snips", "dr", "effective"} == warm["for_everybody"].keys()


def test_a_shopper_waits_until_the_window_has_passed_and_later_clicks_do_not_count(shop):
    experiment = make(shop)
    answer = ask(shop, experiment, "s0").json()
    event = {"copy_id": answer["copies"][0]["copy_id"], "shopper": "s0"}
    send = lambda n, kind: shop.post(  # noqa: E731
        "/v1/events", {"events": [event | {"id": f"e{n}", "kind": kind}]}
    )
    send(0, "impression")
    assert show(shop, experiment).json()["result"]["waiting"] == 1
    later(shop)
    send(1, "click")  # two hours later; the window is one
    result = show(shop, experiment).json()["result"]
    assert (result["shoppers"], result["waiting"]) == (1, 0)
    assert sum(variant["clicks"] for variant in result["variants"]) == 0


def test_a_bandit_gives_the_better_one_more_and_every_one_its_least(shop):
    experiment = make(shop, allocation="thompson", min_share=0.1)
    live_through(shop, experiment, 40, lambda variant, _: int(variant == "warm"))
    shop.gateway.feedback.experiments._shares.clear()
    for n in range(100, 180):
        ask(shop, experiment, f"s{n}")
    with sqlite3.connect(shop.config.state / "serving.db") as database:
        rows = database.execute("select variant, shares from assignment").fetchall()
    drawn = [(variant, json.loads(shares)) for variant, shares in rows]
    late = [(variant, shares) for variant, shares in drawn if shares[1] != drawn[0][1][1]]
    assert len(late) == 80
    assert all(shares == pytest.approx([0.1, 0.9], abs=0.01) for _, shares in late)
    assert sum(variant for variant, _ in late) > 55
    result = show(shop, experiment).json()["result"]["variants"][1]
    assert result["click_rate"]["interval"] is None  # would not hold: the past decided who saw it
    assert result["click_rate"]["always_valid"][0] > 0.5


def test_stopping_keeps_the_result_and_gives_nobody_new_a_variant(shop):
    experiment = make(shop)
    live_through(shop, experiment, 10, lambda *_: 1)
    stopped = shop.post(f"/v1/experiments/{experiment}/stop", {}).json()
    assert stopped["state"] == "stopped"
    shop.send("DELETE", "/v1/events", json={"shopper": "s1"})
    assert show(shop, experiment).json() == stopped
    assert ask(shop, experiment, "new").status_code == 409
    assert shop.post(f"/v1/experiments/{experiment}/stop", {}).status_code == 409


def test_an_experiment_stops_by_itself_before_its_first_events_go(scripted):
    shop = scripted(TEXT, feedback_days=1)
    experiment = make(shop)
    live_through(shop, experiment, 4, lambda *_: 1)
    with sqlite3.connect(shop.config.state / "serving.db") as database:
        past = (utc_now() - timedelta(days=1.1)).isoformat(sep=" ")
        database.execute("update experiment set created_at = ?", (past,))
        database.execute("update feedback_event set received_at = ?", (past,))
    shop.gateway.feedback.tidy()
    shown = show(shop, experiment).json()
    assert shown["state"] == "stopped"
    assert shown["result"]["shoppers"] == 4
    assert shop.send("GET", "/v1/events").json()["data"] == []


def test_another_tenants_experiment_is_as_unknown_as_none(shop):
    theirs = make(shop)
    for path, method in (
        (f"/v1/experiments/{theirs}", "GET"),
        (f"/v1/experiments/{theirs}/stop", "POST"),
    ):
        foreign = shop.send(method, path, tenant="bolt")
        unknown = shop.send(method, path.replace(theirs, "exp-0"), tenant="bolt")
        assert foreign.status_code == 404
        assert foreign.content == unknown.content
    assert ask(shop, theirs, "s0", tenant="bolt").status_code == 404
    assert shop.send("GET", "/v1/experiments", tenant="bolt").json()["data"] == []
    (mine,) = shop.send("GET", "/v1/experiments").json()["data"]
    assert (mine["id"], mine["state"], mine["name"]) == (theirs, "running", "tone")
    assert "result" not in mine


def test_an_experiment_that_could_not_run_is_refused_by_field(shop):
    for fields, named in REFUSED:
        answer = shop.post("/v1/experiments", TWO | fields)
        assert answer.status_code == 400
        assert named in answer.json()["error"]["message"]
    assert shop.send("GET", "/v1/experiments").json()["data"] == []


def test_an_experiment_needs_a_shopper(shop):
    answer = shop.post("/v1/copy", PLAIN | {"experiment": make(shop)})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "shopper_key"

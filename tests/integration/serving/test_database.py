"""Everything the serving database holds, on SQLite and on PostgreSQL."""

import threading
import time
from contextlib import suppress
from datetime import timedelta

import pytest

from handbill.errors import MissingError
from handbill.serving.batch.store import MAX_UNFINISHED, open_batches
from handbill.serving.canaries import Canaries
from handbill.serving.config import ServingConfig
from handbill.serving.errors import ConflictError, InvalidKeyError, RateLimitError
from handbill.serving.experiments.design import Design, Variant
from handbill.serving.feedback.bodies import EventBody
from handbill.serving.feedback.store import Served, open_feedback
from handbill.serving.orm import utc_now
from handbill.serving.quotas import open_quotas
from handbill.serving.registry import Route, Trial
from handbill.serving.repository import DatabaseMarks, Usage
from handbill.serving.tenants import Caller, open_tenants

pytestmark = pytest.mark.integration
ACME = Caller(tenant="acme", key="k" * 8)


@pytest.fixture
def config(tmp_path, database_url):
    database_url = database_url.replace("postgresql://", "postgresql+psycopg://")
    config = ServingConfig(
        registry=tmp_path, state=tmp_path / "serving", database_url=database_url, concurrent=100
    )
    tenants = open_tenants(config)
    tenants.add("acme")
    facts = {"request": "r", "endpoint": "/v1/copy", "artifact": "a", "outcome": "done"}
    counts = {"prompt_tokens": 3, "completion_tokens": 4, "duration_ms": 1}
    tenants.record(Usage(tenant="acme", key="k", started_at=utc_now(), **facts, **counts))
    tenants._writer.submit(lambda: None).result()
    day = tenants.usage_by_day("acme", days=1)[0]
    assert (day["day"], day["prompt_tokens"]) == (utc_now().strftime("%Y-%m-%d"), 3)
    tenants.close()
    return config


def test_gateways_share_quotas(config):
    gateways = [open_quotas(config) for _ in range(2)]
    gateways[0].set("acme", tokens_per_day=100)
    got = []

    def ask(quotas):
        for _ in range(10):
            with suppress(RateLimitError):
                got.append(quotas.admit("acme", 1, tokens=7))

    threads = [threading.Thread(target=ask, args=(quotas,)) for quotas in gateways * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 14
    rows = {row["quota"]: row["used"] for row in gateways[1].show("acme")}
    assert (rows["tokens_per_day"], rows["concurrent"]) == (98, 14)
    for grant in got[:10]:
        gateways[0].release(grant, used=0)
    gateways[0]._repository.renew(gateways[0]._gateway, now=time.time(), expires_at=time.time())
    rows = {row["quota"]: row["used"] for row in gateways[1].show("acme")}
    assert rows["tokens_per_day"] == 28
    for quotas in gateways:
        quotas.close()


def test_batches_are_filled_leased_ended_and_expire(config):
    batches = open_batches(config)
    made = batches.make(ACME, {"tone": "warm"}, [{"title": "Lamp"}] * 3, name="one", more=True)
    for _ in range(2):
        batches.add("acme", made["id"], 2, [{"title": "Blanket"}] * 3)
    with pytest.raises(ConflictError):
        batches.add("acme", made["id"], 9, [{"title": "Blanket"}])
    batches.start("acme", made["id"])
    assert batches.make(ACME, {}, [{"title": "x"}], name="one", more=False)["rows"] == 5
    repository, now = batches.repository, time.time()
    assert [row.id for row in repository.lease("a", now=now, until=now + 9)] == [made["id"]]
    assert repository.lease("b", now=now, until=now + 9) == []
    assert [row.id for row in repository.lease("b", now=now + 10, until=now + 19)] == [made["id"]]
    rows = repository.waiting(made["id"], without={0}, limit=9)
    assert [row.number for row in rows] == [1, 2, 3, 4]
    for row in [*rows, *repository.waiting(made["id"], without=set(), limit=1)]:
        batches.finish(made["id"])
        assert batches.show("acme", made["id"])["state"] == "running"
        assert batches.request(row)["request"]["tone"] == "warm"
        batches.end(row, {"id": "", "error": {"message": "no"}})
    batches.finish(made["id"])
    assert batches.show("acme", made["id"])["failed"] == 5
    found, following = batches.results("acme", made["id"], after=1, limit=3)
    assert ([row["row"] for row in found], following) == ([2, 3, 4], 4)
    for _ in range(MAX_UNFINISHED):
        batches.make(ACME, {}, [], name="", more=True)
    with pytest.raises(ConflictError):
        batches.make(ACME, {}, [], name="", more=True)
    assert repository.purge(utc_now() + timedelta(days=8)) == MAX_UNFINISHED + 1
    batches.close()


def test_keys_rules_reviews_and_marks(config):
    tenants = open_tenants(config)
    key = tenants.new_key("acme")
    caller = tenants.authenticate(key.reveal())
    assert caller.tenant == "acme"
    tenants.revoke(caller.key)
    with pytest.raises(InvalidKeyError):
        tenants.authenticate(key.reveal())
    rule = tenants.house.add("acme", "brand", "Fern")
    assert [row["id"] for row in tenants.house.list("acme")] == [rule]
    tenants.house.remove("acme", rule)
    facts = {"request": "r", "artifact": "a", "title": "Lamp"}
    review = tenants.reviews.keep("acme", "The best lamp.", **facts)
    decided = tenants.reviews.decide("acme", review, "reject", key="k")
    assert (decided["state"], tenants.reviews.list("acme")) == ("rejected", [])
    with pytest.raises(ConflictError):
        tenants.reviews.decide("acme", review, "approve", key="k")
    tenants.close()
    marks = DatabaseMarks(config.url)
    for serial in (1, 3, 2):
        marks.write("acme", serial, f"sha256:{serial}")
    assert marks.read("acme") == (3, "sha256:3")


def test_feedback_and_experiments(config):
    feedback = open_feedback(config)
    design = Design(name="tone", variants=(Variant(name="plain"), Variant(name="warm")))
    experiment = feedback.experiments.create("acme", design)["id"]
    given = feedback.experiments.give("acme", experiment, "shopper-1")
    assert feedback.experiments.give("acme", experiment, "shopper-1") == given
    served = Served(
        id="hb-1-0",
        facts={"version": "v"},
        shopper="shopper-1",
        experiment=experiment,
        variant=given.number,
    )
    feedback.keep("acme", served)
    events = [
        EventBody(id=f"e{number}", copy_id="hb-1-0", kind=kind, shopper="shopper-1")
        for number, kind in enumerate(("impression", "click"))
    ]
    assert [feedback.take("acme", events).accepted for _ in range(2)] == [2, 0]
    rows, _ = feedback.export("acme", after=0, limit=10)
    assert [row["kind"] for row in rows] == ["impression", "click"]
    assert feedback.experiments.show("acme", experiment)["result"]["waiting"] == 1
    assert feedback.experiments.stop("acme", experiment)["state"] == "stopped"
    assert feedback.forget_shopper("acme", "shopper-1")["events"] == 2
    assert feedback.export("acme", after=0, limit=10)[0] == []
    with pytest.raises(MissingError):
        feedback.take("acme", events)
    feedback.close()


def test_a_candidate_that_fails_is_sent_back_for_all_gateways(config):
    route = Route(adapter="sha256:b", digest="sha256:b", kind="tenant", version=2)
    trial = Trial(channel="acme", serial=2, candidate=route, stable="sha256:a", percent=50)
    gateways = [Canaries(config.url) for _ in range(2)]
    assert [gateway.halted(trial) for gateway in gateways] == [False, False]
    tenants = open_tenants(config)
    facts = {"request": "r", "endpoint": "/v1/copy", "prompt_tokens": 1, "completion_tokens": 1}
    for number in range(60):
        artifact, outcome = (("sha256:b", "error"), ("sha256:a", "done"))[number % 2]
        later = utc_now() + timedelta(seconds=1)
        how = {"artifact": artifact, "outcome": outcome, "duration_ms": 1, "started_at": later}
        tenants.record(Usage(tenant="acme", key="k", **facts, **how))
    tenants.close()
    assert [gateway.halted(trial) for gateway in gateways] == [True, True]
    for gateway in gateways:
        gateway.close()

"""A candidate is tried on a share of the requests, and goes back by itself when it fails more."""

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest

from handbill.generator.channels import GLOBAL_CHANNEL
from handbill.serving.canaries import Canaries
from handbill.serving.config import ServingConfig
from handbill.serving.errors import BusyError
from handbill.serving.migrations import migrate
from handbill.serving.orm import utc_now
from handbill.serving.registry import Registry, Route, Trial, Verifier
from handbill.serving.repository import Repository, Usage

PEOPLE = [f"shopper-{number}" for number in range(2000)]


@pytest.fixture
def config(tmp_path):
    state = tmp_path / "serving"
    state.mkdir()
    return ServingConfig(registry=tmp_path / "registry", state=state)


@pytest.fixture
def registry(publisher, base):
    return Registry(Verifier(publisher.root, base))


@pytest.fixture
def three(publisher, adapters):
    """Digests of everyone's model and of two of acme's."""
    everyone = publisher.seal(adapters.folder(0))
    own = [publisher.seal(adapters.folder(i), "acme", version=i) for i in (1, 2)]
    return everyone, *own


def first(registry, tenant="acme"):
    """What each of many is served."""
    registry.refresh()
    return [registry.choices(tenant, who)[0].digest for who in PEOPLE]


def test_a_share_of_the_people_is_served_the_candidate_and_always_the_same(
    publisher, registry, three
):
    everyone, old, new = three
    publisher.point("", everyone)
    publisher.point("acme", old, candidate=new, percent=10)
    given = first(registry)
    assert 150 < given.count(new) < 250
    assert given.count(old) == len(PEOPLE) - given.count(new)
    assert first(registry) == given
    publisher.point("acme", old, candidate=new, percent=50)
    more = first(registry)
    assert 900 < more.count(new) < 1100
    assert all(after == new for before, after in zip(given, more, strict=True) if before == new)
    assert set(first(registry, "bolt")) == {everyone}
    assert {route.digest for route in registry.choices("acme", "x")} == {old, new}
    assert registry.route("acme").digest == old
    publisher.point("acme", new)
    assert set(first(registry)) == {new}
    assert registry.trials() == []


def test_a_first_adapter_is_tried_beside_what_everyone_is_served(publisher, registry, three):
    everyone, _, new = three
    publisher.point("", everyone)
    publisher.point("acme", "", candidate=new, percent=50)
    assert set(first(registry)) == {everyone, new}


def test_a_candidate_for_everyone_reaches_those_without_an_own_one(
    publisher, adapters, registry, three
):
    everyone, old, _ = three
    candidate = publisher.seal(adapters.folder(3), version=2)
    publisher.point("", everyone, candidate=candidate, percent=50)
    publisher.point("acme", old)
    assert set(first(registry, "bolt")) == {everyone, candidate}
    assert set(first(registry, "acme")) == {old}


def test_a_candidate_of_somebody_else_or_damaged_is_refused_and_nothing_changes(
    publisher, registry, three
):
    _, old, new = three
    publisher.point("acme", old)
    assert set(first(registry)) == {old}
    publisher.point("bolt", "", candidate=new, percent=50)
    assert set(first(registry, "bolt")) == {registry.route("bolt").digest}
    card = publisher.store.path(new) / "README.md"
    card.write_bytes(card.read_bytes() + b"x")
    publisher.point("acme", old, candidate=new, percent=50)
    assert set(first(registry)) == {old}
    assert registry.refused >= 2


class Answers:
    """Requests of a tenant, by chance stable or candidate, that fail at a rate of each."""

    def __init__(self, config, trial, tenant="acme"):
        self.repository, self.trial, self.tenant = Repository(config.url), trial, tenant
        self.draws = np.random.default_rng(0)

    def add(self, count, *, stable, candidate, failure="error", coverage=(None, None)):
        for _ in range(count):
            new = self.draws.random() < self.trial.percent / 100
            failed = self.draws.random() < (candidate if new else stable)
            usage = Usage(
                tenant=self.tenant,
                key="k" * 8,
                request="r",
                endpoint="/v1/copy",
                artifact=self.trial.candidate.digest if new else self.trial.stable,
                prompt_tokens=1,
                completion_tokens=1,
                outcome=failure if failed else "done",
                started_at=utc_now() + timedelta(seconds=1),
                duration_ms=1,
                coverage=coverage[new],
            )
            self.repository.add_usage(usage)


@pytest.fixture
def trial():
    route = Route(adapter="sha256:b", digest="sha256:b", kind="tenant", version=2)
    return Trial(channel="acme", serial=2, candidate=route, stable="sha256:a", percent=50)


@pytest.fixture
def canaries(config, trial):
    migrate(config.url)
    repository = Repository(config.url)
    repository.add_tenant("acme", "Acme")
    found = Canaries(config.url)
    assert not found.halted(trial)
    yield found
    found.close()


def test_a_candidate_that_fails_is_sent_back_and_stays_so(canaries, config, trial):
    answers = Answers(config, trial)
    answers.add(60, stable=0.02, candidate=0.9)
    assert canaries.halted(trial)
    answers.add(60, stable=0.9, candidate=0.0)
    again = Canaries(config.url)
    assert again.halted(trial)
    again.close()
    later = Trial(
        channel="acme", serial=3, candidate=trial.candidate, stable=trial.stable, percent=50
    )
    assert not canaries.halted(later)  # the operator tries it again


def test_blocked_copy_counts_against_a_candidate_and_what_was_refused_does_not(
    canaries, config, trial
):
    answers = Answers(config, trial)
    answers.add(60, stable=0.0, candidate=0.9, failure="refused")
    assert not canaries.halted(trial)
    answers.add(60, stable=0.0, candidate=0.9, failure="blocked")
    assert canaries.halted(trial)


@pytest.fixture
def for_all(trial, canaries, config):
    """A trial on everybody, of four tenants."""
    for tenant in ("bolt", "carl", "dora"):
        Repository(config.url).add_tenant(tenant, tenant)
    for_all = replace(trial, channel=GLOBAL_CHANNEL)
    assert not canaries.halted(for_all)
    return for_all


def test_no_tenant_sends_back_a_candidate_for_everybody_by_itself(canaries, config, for_all):
    Answers(config, for_all).add(300, stable=0.0, candidate=1.0)
    assert not canaries.halted(for_all)
    for tenant in ("bolt", "carl", "dora"):
        Answers(config, for_all, tenant).add(50, stable=0.1, candidate=0.1)
    assert not canaries.halted(for_all)
    for tenant in ("bolt", "carl"):
        Answers(config, for_all, tenant).add(50, stable=0.1, candidate=0.9)
    assert canaries.halted(for_all)


def test_no_tenant_hides_by_a_flood_that_a_candidate_fails_for_the_others(
    canaries, config, for_all, monkeypatch
):
    monkeypatch.setattr("handbill.serving.canaries._MOST", 300)
    monkeypatch.setattr("handbill.serving.canaries._MOST_OF_ONE", 60)
    Answers(config, for_all).add(300, stable=0.0, candidate=0.0)
    for tenant in ("bolt", "carl", "dora"):
        Answers(config, for_all, tenant).add(50, stable=0.05, candidate=0.95)
    assert canaries.halted(for_all)


def test_a_services_only_tenant_sends_back_what_fails_for_it(canaries, config, trial):
    for_all = replace(trial, channel=GLOBAL_CHANNEL)
    assert not canaries.halted(for_all)
    Answers(config, for_all).add(60, stable=0.0, candidate=1.0)
    assert canaries.halted(for_all)


@pytest.mark.parametrize(("of_candidate", "sent_back"), [(0.3, True), (0.8, False), (0.9, False)])
def test_one_whose_copy_leaves_out_more_of_the_product_is_sent_back(
    canaries, config, trial, of_candidate, sent_back
):
    answers = Answers(config, trial)
    answers.add(120, stable=0.0, candidate=0.0, coverage=(0.8, of_candidate))
    assert canaries.halted(trial) == sent_back


def test_one_that_is_as_good_or_better_is_not(canaries, config, trial):
    answers = Answers(config, trial)
    answers.add(150, stable=0.1, candidate=0.1)
    assert not canaries.halted(trial)
    answers.add(150, stable=0.6, candidate=0.05)
    assert not canaries.halted(trial)


def test_a_registry_serves_the_stable_one_again_when_a_trial_is_halted(
    publisher, base, three, config
):
    _, old, new = three
    migrate(config.url)
    Repository(config.url).add_tenant("acme", "Acme")
    canaries = Canaries(config.url)
    registry = Registry(Verifier(publisher.root, base), halts=canaries)
    publisher.point("acme", old, candidate=new, percent=50)
    assert set(first(registry)) == {old, new}
    (trial,) = registry.trials()
    Answers(config, trial).add(60, stable=0.0, candidate=1.0)
    assert set(first(registry)) == {old}
    assert registry.trials() == []
    canaries.close()


def test_an_answer_says_which_of_the_two_wrote_it_and_a_name_chooses(service, publisher, adapters):
    old = service.digests["acme"]
    new = publisher.seal(adapters.folder(3), "acme", version=9)
    publisher.point("acme", old, candidate=new, percent=50)
    service.gateway._registry.refresh()

    def ask(path, **fields):
        body = service.bodies[path] | {"max_tokens": 1} | fields
        answer = service.post(path, body).json()
        return answer.get("version") or answer["system_fingerprint"].split("-")[1]

    chat, people = "/v1/chat/completions", [f"p{number}" for number in range(8)]
    first = [ask(chat, user=who) for who in people]
    assert set(first) == {"v1", "v9"}
    assert [ask(chat, user=who) for who in people] == first
    by_shopper = [ask("/v1/copy", shopper_key=f"shopper-{who}") for who in people]
    assert set(by_shopper) == {old, new}
    assert [ask("/v1/copy", shopper_key=f"shopper-{who}", user="u") for who in people] == by_shopper
    for name, version in (("acme@1", "v1"), ("acme@9", "v9"), (new, "v9")):
        assert {ask(chat, user=who, model=name) for who in people} == {version}
    listed = {model["id"] for model in service.send("GET", "/v1/models").json()["data"]}
    assert {"acme", "acme@1", "acme@9", old, new} <= listed
    assert service.post(chat, service.bodies[chat] | {"model": "bolt@9"}).status_code == 404


def test_what_became_of_a_request_says_whether_the_model_is_to_blame(scripted):
    service = scripted("The best lamp in the world.", "A warm lamp.", copy_attempts=1)
    chat = service.bodies["/v1/chat/completions"]
    endless = {"type": "json_schema", "json_schema": {"name": "q", "schema": {"$ref": "#"}}}
    assert service.post("/v1/chat/completions", chat | {"response_format": endless}).is_client_error
    copy = {"title": "Desk lamp", "attributes": {"light": "warm", "wood": "oak"}}
    assert service.post("/v1/copy", copy).status_code == 422
    assert service.post("/v1/copy", copy).status_code == 200
    assert service.post("/v1/copy", copy | {"stream": True}).status_code == 200
    assert service.post("/v1/copy", copy | {"n": 2}).status_code == 200  # one of the two passed

    async def broken(_):
        raise RuntimeError
        yield

    async def full(_):
        raise BusyError("full")
        yield

    for submit in (broken, full):
        service.engine.submit = submit
        assert service.post("/v1/copy", copy).is_server_error
    outcomes = [row.outcome for row in service.usage()]
    assert outcomes == ["refused", "blocked", "done", "blocked", "done", "error", "refused"]
    assert [row.coverage for row in service.usage()][1:] == [None, 0.5, None, 0.5, None, None]

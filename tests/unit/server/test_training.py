"""A training run over real merchants in one process: it goes on after any crash, to the same end."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from handbill.clients.secure_sums import ROSTER_FILE, read_roster
from handbill.errors import ArtifactError, HandbillError, InputError, MissingError, RoundError
from handbill.federation.aggregation import ServerOptimizer
from handbill.federation.messages import Instruction, Recipe, Report, Signed, open_signed, sign
from handbill.federation.roster import Roster
from handbill.federation.transport import InProcessTransport
from handbill.generator.artifacts import load_or_create_key, verify
from handbill.generator.channels import read_channel
from handbill.server import attempts
from handbill.server.deletion import forget
from handbill.server.registry import PUBLISHER_KEY, Registry, open_registry
from handbill.server.settings import AdapterSettings, ServerSettings
from handbill.server.training import Training
from handbill.server.verification import verify_registry

SHOPS = ("shop-a", "shop-b", "shop-c")


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[n], other[n]) for n in one)


def test_a_run_commits_every_round_once_each_on_top_of_the_last(one):
    one.train()
    rounds = one.rounds()
    assert [r.number for r in rounds] == [1, 2, 3]
    assert [r.parent for r in rounds] == ["", rounds[0].aggregate, rounds[1].aggregate]
    for r in rounds:
        assert r.survivors == list(SHOPS)
        assert set(r.ledger_heads) == set(SHOPS)
        manifest = verify(one.registry.store.path(r.aggregate), one.registry.public_key)
        assert (manifest.run, manifest.round, manifest.parent) == (one.run, r.number, r.parent)
        assert [s["merchant"] for s in manifest.privacy] == list(SHOPS)
        assert r.bytes_up > 0 < r.bytes_down
    assert not same(one.weights(1), one.weights(3))
    assert one.state(3).steps == 3


def test_a_run_goes_on_after_a_crash_to_the_very_same_weights(make):
    whole = make("whole")
    whole.train()
    for replies in (3, 4, 5):  # between two rounds, after the next one's first report, its second
        broken = make(f"broken-{replies}")
        broken.cable.cut_after = replies
        with pytest.raises(broken.power_cut):
            broken.train()
        assert [r.number for r in broken.rounds()] == [1]
        broken.train()
        for number in (1, 2, 3):
            assert same(whole.weights(number), broken.weights(number))
        ours, theirs = whole.state(3), broken.state(3)
        assert ours.steps == theirs.steps == 3
        assert same(ours.first, theirs.first)
        assert same(ours.second, theirs.second)
        assert [r.attempt for r in broken.rounds()] == [1, 2, 1]
        assert len(broken.rounds("abandoned")) == 1


def test_without_its_optimisers_memory_a_run_would_end_elsewhere(make):
    whole, other = make("whole"), make("other")
    whole.train()
    other.train(optimizer=ServerOptimizer(learning_rate=3e-2, momentum=0.0))
    for number, close in ((1, True), (2, False)):  # the first step knows no past
        ours, theirs = whole.weights(number), other.weights(number)
        assert all(np.allclose(ours[n], theirs[n], atol=1e-4) for n in ours) == close


def test_crashes_while_a_round_is_being_committed_lose_nothing(make, monkeypatch):
    whole, broken = make("whole"), make("broken")
    whole.train()
    broken.cable.cut_after = 3
    with pytest.raises(broken.power_cut):
        broken.train()
    for _ in range(3):  # each dies with the round's files written and its row not

        def dies(*_, **__):
            raise broken.power_cut

        with monkeypatch.context() as patch:
            patch.setattr("handbill.server.registry.Registry.commit_round", dies)
            with pytest.raises(broken.power_cut):
                broken.train()
    broken.train()
    assert same(whole.weights(3), broken.weights(3))
    assert same(whole.state(3).second, broken.state(3).second)
    assert len(broken.artifacts()) == 3
    assert len(list((broken.home / "optimizer").iterdir())) == 2


def test_a_run_whose_optimiser_state_is_gone_says_so(one):
    one.cable.cut_after = 3
    with pytest.raises(one.power_cut):
        one.train()
    shutil.rmtree(one.home / "optimizer")
    with pytest.raises(RoundError, match="start a new one"):
        one.train()


def test_a_finished_run_trained_again_trains_nothing(one):
    one.train()
    before = one.rounds()
    one.train()
    assert one.rounds() == before


class Poisoner:
    """A member of the federation that signs well and sends what it likes."""

    def __init__(self, trainer, server_key, update, *, attempts=1):
        self.id, self.server_key = trainer.merchant.id, server_key
        self.key = load_or_create_key(trainer.home / "keys/signing.key")
        self.honest, self.update, self.attempts = trainer.handle, update, attempts

    def __call__(self, message):
        reply = self.honest(message)
        if self.attempts <= 0:
            return reply
        self.attempts -= 1
        asked, _ = open_signed(Signed.from_bytes(message), self.server_key, Instruction)
        report, _ = open_signed(Signed.from_bytes(reply), self.key.public_key(), Report)
        assert report.round == asked.round
        return sign(report, self.update, self.key).to_bytes()


def poison(federation, update, *, attempts, shop="shop-c"):
    federation.handlers[shop] = Poisoner(
        federation.trainers[shop], federation.registry.public_key, update, attempts=attempts
    )


LOUD = {
    "optimizer": ServerOptimizer(kind="fedavg", learning_rate=1.0),
    "gate_nats": 0.002,  # a random model knows nothing, so little can make it worse
    "max_update_norm": 1e5,
}


def test_a_poisoned_aggregate_is_never_committed(one, random_update):
    poison(one, random_update(one.model.shapes, scale=300.0), attempts=99)
    with pytest.raises(RoundError, match="raises the probe loss"):
        one.train(**LOUD)
    assert one.rounds() == []
    assert one.artifacts() == []
    assert len(one.rounds("abandoned")) == attempts.ATTEMPTS
    assert all("probe loss" in fact["reason"] for fact in one.facts("abandoned"))


def test_after_a_poisoned_attempt_the_next_one_may_be_committed(one, random_update):
    poison(one, random_update(one.model.shapes, scale=300.0), attempts=1)
    one.train(**LOUD)
    assert [r.attempt for r in one.rounds()] == [2, 1, 1]
    (again,) = one.rounds("abandoned")
    assert again.number == 1
    for trainer in one.trainers.values():  # the second attempt cost nobody anything
        lines = (trainer.home / "progress.jsonl").read_text().splitlines()
        assert sum(json.loads(line)["event"] == "trained" for line in lines) == 3


def test_without_the_gate_that_poison_would_have_been_served(one, random_update):
    poison(one, random_update(one.model.shapes, scale=300.0), attempts=1)
    one.train(**LOUD | {"gate_nats": 1e9})
    losses = [r.metrics["probe_loss"] for r in one.rounds()]
    assert losses[0] > one.facts("probe")[0]["probe_loss"] + 0.002


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e9])
def test_one_merchants_update_that_is_refused_leaves_the_others_round(one, value):
    bad = {n: np.full(shape, value, np.float32) for n, shape in one.model.shapes.items()}
    poison(one, bad, attempts=1)
    one.train()
    assert [r.survivors for r in one.rounds()] == [["shop-a", "shop-b"], [*SHOPS], [*SHOPS]]
    assert list(one.facts("committed")[0]["failures"]) == ["shop-c"]


def test_weights_that_overflow_are_not_committed(one):
    too_fast = ServerOptimizer(kind="fedavg", learning_rate=3e38)
    poison(one, {n: np.full(s, 9.0, np.float32) for n, s in one.model.shapes.items()}, attempts=99)
    with np.errstate(over="ignore"), pytest.raises(RoundError, match="NaN or infinity"):
        one.train(optimizer=too_fast)
    assert one.rounds() == []


def test_a_run_without_enough_merchants_stops_and_the_last_round_stands(one):
    one.cable.cut_after = 3
    with pytest.raises(one.power_cut):
        one.train()

    def down(message):
        raise HandbillError("power is out in town")

    for shop in SHOPS[1:]:
        one.handlers[shop] = down
    with pytest.raises(RoundError, match=r"1 good reports, 2 needed.*power is out in town"):
        one.train()
    assert [r.number for r in one.rounds()] == [1]
    assert one.registry.last_committed(one.run).number == 1


def test_every_merchant_holds_the_operators_roster_and_trains_under_no_other(one):
    one.cable.cut_after = 4
    with pytest.raises(one.power_cut):
        one.train()
    rosters = [read_roster(trainer.home) for trainer in one.trainers.values()]
    assert [roster.head for roster in rosters] == [one.registry.roster().head] * len(SHOPS)
    other = Roster()
    stranger = Ed25519PrivateKey.generate().public_key().public_bytes_raw().hex()
    line = other.next_line(
        "enrol",
        "shop-a",
        stranger,
        time="now",
        operator=load_or_create_key(one.home / PUBLISHER_KEY),
    )
    (one.trainers["shop-a"].home / ROSTER_FILE).write_text(f"{line}\n")  # what it saw first
    paid = [trainer._budget.head() for trainer in one.trainers.values()]
    one.train()
    assert all("shop-a" not in r.survivors for r in one.rounds()[1:])
    refused = one.facts("committed")[-1]["failures"]["shop-a"]
    assert "the operator has rewritten it" in refused
    assert one.trainers["shop-a"]._budget.head() == paid[0]
    assert one.trainers["shop-b"]._budget.head() != paid[1]


def test_a_run_goes_on_with_the_recipe_it_began_with_or_not_at_all(one):
    one.cable.cut_after = 4
    with pytest.raises(one.power_cut):
        one.train()
    attempts, recipe = len(all_rounds(one)), one.settings["recipe"]
    with pytest.raises(InputError, match=r"began with rounds=3, clipping_norm=0\.5; server\.toml"):
        one.train(recipe=replace(recipe, rounds=4, clipping_norm=0.25))
    with pytest.raises(InputError, match=r"began with rank=2; server\.toml"):
        one.train(recipe=recipe, adapter=AdapterSettings(rank=4, alpha=4.0, layers=1))
    assert len(all_rounds(one)) == attempts  # nobody was asked
    one.train(recipe=recipe, adapter=AdapterSettings(rank=2, alpha=4.0, layers=1))
    assert [r.number for r in one.rounds()] == [1, 2, 3]


def test_after_the_rounds_every_merchant_gets_an_adapter_of_its_own(one):
    recipe = Recipe(rounds=1, personal_steps=2, expected_users=8)
    one.train(recipe=recipe, publish=True)
    (last,) = one.rounds()
    (personal,) = one.rounds(stage="personal")
    assert personal.survivors == list(SHOPS)
    assert personal.aggregate == ""
    own = {a.tenant: a for a in one.artifacts() if a.tenant}
    assert sorted(own) == list(SHOPS)
    for shop, artifact in own.items():
        manifest = verify(one.registry.store.path(artifact.digest), one.registry.public_key)
        assert (manifest.kind, manifest.tenant, manifest.parent) == ("tenant", shop, last.aggregate)
        assert [s["merchant"] for s in manifest.privacy] == [shop]
        channel = read_channel(one.registry.root, shop, one.registry.public_key)
        assert channel.digest == artifact.digest
    tensors = [one.own(artifact) for artifact in own.values()]
    assert not same(tensors[0], tensors[1])
    served = read_channel(one.registry.root, "", one.registry.public_key)
    assert served.digest == last.aggregate


def test_a_death_while_own_adapters_come_in_leaves_none_of_them(make, monkeypatch):
    one, added = make(), []
    recipe = Recipe(rounds=1, personal_steps=1, expected_users=8)
    add = Registry._add_artifact

    def dies_at_the_second(*given):
        added.append(given)
        if len(added) == 2:
            raise one.power_cut
        return add(*given)

    one.cable.cut_after = len(SHOPS) + 2  # two shops' own have come
    with pytest.raises(one.power_cut):
        one.train(recipe=recipe, publish=True)
    assert {a.tenant for a in one.artifacts()} == {""}
    with monkeypatch.context() as patch:
        patch.setattr(Registry, "_add_artifact", dies_at_the_second)
        with pytest.raises(one.power_cut):
            one.train(recipe=recipe, publish=True)
    assert {a.tenant for a in one.artifacts()} == {""}
    one.train(recipe=recipe, publish=True)
    own = [(a.tenant, a.version) for a in one.artifacts() if a.tenant]
    assert own == [(shop, 1) for shop in SHOPS]
    assert len(list(one.registry.store)) == len(one.artifacts())
    assert verify_registry(one.registry).problems == ()


def test_a_shop_that_is_revoked_before_the_commit_has_no_own_adapter_in_it(one, monkeypatch):
    commit = Registry.commit_round

    def late(registry, attempt, **facts):
        if attempt.stage == "personal":
            registry.revoke("shop-b")
        return commit(registry, attempt, **facts)

    monkeypatch.setattr(Registry, "commit_round", late)
    one.train(recipe=Recipe(rounds=1, personal_steps=1, expected_users=8), publish=True)
    (personal,) = one.rounds(stage="personal")
    assert personal.survivors == ["shop-a", "shop-c"]
    assert {a.tenant for a in one.artifacts()} == {"", "shop-a", "shop-c"}
    assert verify_registry(one.registry).problems == ()


def test_an_own_adapter_says_which_prompts_it_was_trained_with_and_no_other_artifact_does(make):
    one = make()
    own = one.trainers["shop-b"]
    digest = "sha256:" + 64 * "b"
    own.scenarios = replace(own.scenarios, prompts=digest)  # as with scenarios of the shop's own
    one.train(recipe=Recipe(rounds=1, personal_steps=1, expected_users=8))
    manifests = [
        verify(one.registry.store.path(a.digest), one.registry.public_key) for a in one.artifacts()
    ]
    assert {m.tenant: m.prompts for m in manifests} == {
        "": "", "shop-a": "", "shop-b": digest, "shop-c": "",
    }  # fmt: skip
    assert [m.tenant for m in manifests if b"prompts" in m.to_bytes()] == ["shop-b"]
    assert verify_registry(one.registry).problems == ()


def test_what_a_merchant_sends_as_its_own_is_what_it_is_served(one):
    recipe = Recipe(rounds=1, personal_steps=1, expected_users=8)
    one.train(recipe=recipe)
    (artifact,) = [a for a in one.artifacts() if a.tenant == "shop-b"]
    served = one.own(artifact)
    home = one.trainers["shop-b"].home
    from safetensors.numpy import load_file

    kept = load_file(home / "adapters/personal.safetensors")
    for name, value in kept.items():
        np.testing.assert_allclose(served[name], value, atol=1e-6)


def test_a_merchant_that_wants_none_of_its_own_is_left_out_of_that_stage_only(make):
    one = make(**{"shop-b": {"personal": False}})
    one.train(recipe=Recipe(rounds=1, personal_steps=1, expected_users=8))
    assert one.rounds()[0].survivors == list(SHOPS)
    (personal,) = one.rounds(stage="personal")
    assert personal.survivors == ["shop-a", "shop-c"]
    assert {a.tenant for a in one.artifacts()} == {"", "shop-a", "shop-c"}
    failures = one.facts("committed")[-1]["failures"]
    assert "does not allow training the shop's own adapter" in failures["shop-b"]


def test_a_shop_whose_disk_went_back_is_left_out_until_its_ledger_is_there_again(make, tmp_path):
    one = make(**{shop: {"epsilon_per_run": 2.0} for shop in SHOPS})
    recipe = Recipe(rounds=2, personal_steps=0, expected_users=8)
    home = one.trainers["shop-a"].home
    shutil.copytree(home, tmp_path / "yesterday")
    one.train(recipe=recipe)
    assert one.registry.receipts().keys() == set(SHOPS)
    home.rename(tmp_path / "today")
    shutil.copytree(tmp_path / "yesterday", home)
    one.start_again(recipe=recipe).train("run-2", publish=False)
    assert all("lacks the head" in f["failures"]["shop-a"] for f in one.facts("committed")[2:])
    assert "lacks the head" in one.start_again().ping("ping-1").failures["shop-a"]
    shutil.rmtree(home)
    (tmp_path / "today").rename(home)
    one.start_again(recipe=recipe).train("run-3", publish=False)
    assert [r.survivors for r in one.rounds()] == [[*SHOPS]] * 2 + [["shop-b", "shop-c"]] * 2 + [
        [*SHOPS]
    ] * 2


def test_a_ping_reaches_everybody_and_commits_nothing(one):
    outcome = one.start_again().ping("ping-1")
    assert outcome.reporters == list(SHOPS)
    assert one.rounds() == one.artifacts() == []


def test_a_ping_in_the_middle_of_a_round_costs_nobody_the_round(one):
    """Something was audited since the round was planned, and some have had no message of it yet."""
    handle, pings = one.handlers["shop-a"], []

    def pinged_after(message):
        one.handlers["shop-a"] = handle
        answer = handle(message)
        registry = open_registry(one.home)
        with registry.database.begin() as uow:
            registry.record(uow, "operator", "noted", "in the meantime", "")
        cable = InProcessTransport(one.handlers)
        other = Training(one.home, cable, registry, ServerSettings(**one.settings), model=one.model)
        pings.append(other.ping("ping-1"))
        registry.database.close()
        return answer

    one.handlers["shop-a"] = pinged_after
    one.train()
    assert pings[0].reporters == list(SHOPS)
    assert one.facts("abandoned") == []
    assert [r.survivors for r in one.rounds()] == [list(SHOPS)] * 3


def test_a_warm_up_comes_first_and_the_private_rounds_begin_with_it(make):
    one, cut = make("one"), make("cut")
    recipe = Recipe(warmup_rounds=2, warmup_rows=8, rounds=2, personal_steps=0, expected_users=8)
    one.train(recipe=recipe)
    warm, private = one.rounds(stage="warmup"), one.rounds()
    assert [r.number for r in warm] == [r.number for r in private] == [1, 2]
    assert [r.parent for r in (*warm, *private)] == [
        "",
        *(r.aggregate for r in (*warm, private[0])),
    ]
    assert one.state(1).steps == 1  # an optimiser of its own
    cards = [one.registry.store.path(r.aggregate) / "README.md" for r in (warm[0], private[0])]
    assert ["No shopper's data was used" in card.read_text() for card in cards] == [True, False]

    # Cut off in the first private round (three replies a round), it goes on to the same end.
    cut.cable.cut_after = 7
    with pytest.raises(cut.power_cut):
        cut.train(recipe=recipe)
    assert len(cut.rounds(stage="warmup")) == 2
    assert cut.registry.receipts() == {}  # nothing is paid yet
    cut.train(recipe=recipe)
    assert all(np.array_equal(v, cut.weights(2)[n]) for n, v in one.weights(2).items())


def test_updates_in_eight_bits_take_a_quarter_of_the_way_and_end_close(make):
    whole, packed = make("whole"), make("packed")
    whole.train()
    packed.train(compression="int8")
    assert [r.number for r in packed.rounds()] == [1, 2, 3]
    up = [sum(r.bytes_up for r in one.rounds()) for one in (whole, packed)]
    headers = 3 * 3 * 4096  # the tiny adapter is hardly larger than its signed header
    assert up[1] < up[0]
    assert up[1] - headers < 0.5 * up[0]
    moved = [one.weights(3) for one in (whole, packed)]
    distance = sum(np.square(moved[0][n] - moved[1][n]).sum() for n in moved[0])
    assert 0 < distance < 0.02 * sum(np.square(value).sum() for value in moved[0].values())


def test_a_packed_run_goes_on_after_a_crash_to_the_very_same_weights(make):
    whole, broken = make("whole"), make("broken")
    whole.train(compression="int8")
    broken.cable.cut_after = 4
    with pytest.raises(broken.power_cut):
        broken.train(compression="int8")
    broken.train()
    assert same(whole.weights(3), broken.weights(3))


def test_the_own_adapters_of_shops_are_not_in_the_registry_in_plain(one):
    recipe = Recipe(rounds=1, personal_steps=1, expected_users=8)
    one.train(recipe=recipe, publish=True)
    files = [path for path in one.registry.root.rglob("*") if path.is_file()]
    disk = b"".join(path.read_bytes() for path in files)
    own = [artifact for artifact in one.artifacts() if artifact.tenant]
    assert len(own) == len(SHOPS)
    for artifact in own:
        for name, value in one.own(artifact).items():
            assert (value.tobytes()[:32] in disk) is (".lora_A." in name)  # A is everybody's
    forget(one.registry, "shop-a", wait_s=0)
    for artifact in own:
        if artifact.tenant != "shop-a":
            assert one.own(artifact)
    with pytest.raises(ArtifactError):
        one.own(own[0])


def test_a_merchant_that_is_forgotten_during_the_last_round_leaves_nothing(one):
    recipe = Recipe(rounds=1, personal_steps=1, expected_users=8)
    handle = one.handlers["shop-b"]

    def late(message):
        answer = handle(message)
        if any(r.status == "open" and r.stage == "personal" for r in all_rounds(one)):
            forget(one.registry, "shop-b", wait_s=0)
        return answer

    one.handlers["shop-b"] = late
    one.train(recipe=recipe, publish=True)
    (personal,) = one.rounds(stage="personal")
    assert personal.survivors == ["shop-a", "shop-c"]
    assert {a.tenant for a in one.artifacts()} == {"", "shop-a", "shop-c"}
    assert "shop-b" not in one.registry.vault
    (refused,) = [f for f in one.facts("reply") if f["error"]]
    assert "shop-b: is revoked" in refused["error"]


def all_rounds(one):
    with one.registry.database.begin() as uow:
        return uow.rounds.all()


def test_without_the_kek_no_merchant_is_asked_and_none_pays(one):
    one.registry.vault.kek.unlink()
    with pytest.raises(MissingError, match="no key-encryption key"):
        one.train(recipe=Recipe(rounds=1, personal_steps=1, expected_users=8))
    assert all_rounds(one) == []
    one.train(recipe=Recipe(rounds=1, personal_steps=0, expected_users=8))

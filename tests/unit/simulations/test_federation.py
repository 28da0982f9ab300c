"""The simulated federation: real parts, small numbers, dropouts that are named and survived."""

import json

import pytest
from typer.testing import CliRunner

from handbill.cli import app
from handbill.errors import InputError, RoundError
from handbill.simulations.federation import LossyTransport, simulate
from handbill.simulations.federation_result import FederationConfig, Spread

SMALL = FederationConfig(merchants=5, rounds=2, users=20, dropout=0.3, seed=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("simulation")


@pytest.fixture(scope="module")
def steps():
    return []


@pytest.fixture(scope="module")
def result(folder, steps):
    return simulate(SMALL, folder, on_step=steps.append)


def test_a_round_goes_on_without_those_that_stay_silent(result):
    assert [r.number for r in result.rounds] == [1, 2]
    assert all(r.cohort == 5 for r in result.rounds)
    assert 0 < result.dropouts < 10
    assert result.clients_per_s > 0


def test_every_merchants_own_ledger_is_within_its_limit_and_grows(result):
    assert list(result.epsilon) == [0, 1, 2]
    assert result.epsilon[0].largest == 0.0
    assert result.epsilon[1].mean < result.epsilon[2].mean
    assert 0.97 * SMALL.epsilon < result.epsilon[2].largest <= SMALL.epsilon
    assert result.epsilon[2].low < result.epsilon[2].largest  # somebody missed a round


def test_the_federation_learns_through_its_noise(result):
    assert list(result.loss) == [0, 1, 2]
    assert result.improved == 5
    assert result.loss[2].mean < result.loss[1].mean < result.loss[0].mean


def test_progress_is_told_once_for_each_merchant_and_message(result, steps):
    assert steps == ["set up merchants"] * 5 + ["train and report"] * 10


def test_what_is_left_behind_is_a_federation_to_look_into(result, folder):
    homes = sorted((folder / "shops").iterdir())
    assert len(homes) == 5
    assert {home.name.rsplit("-", 1)[0] for home in homes} == {
        "fern-kettle",
        "margin-ink",
        "ridge-lantern",
    }
    for home in homes:
        assert (home / "ledger.db").is_file() or result.dropouts >= 2
    assert (folder / "server" / "registry" / "publisher.pub").is_file()


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "precious").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        simulate(SMALL, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


@pytest.mark.parametrize(
    "wrong", [{"merchants": 0}, {"rounds": 0}, {"users": 5}, {"dropout": 1.0}, {"dropout": -0.1}]
)
def test_a_simulation_that_cannot_be_is_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        FederationConfig(**wrong)


def test_messages_are_lost_at_the_rate_asked_for_and_repeatably():
    def replies(dropout, seed):
        heard = []
        transport = LossyTransport({"shop-a": lambda message: message}, dropout=dropout, seed=seed)
        for number in range(400):
            transport.send("shop-a", str(number).encode())
        while (reply := transport.receive(1)) is not None:
            heard.append(reply.message)
        return heard

    assert len(replies(0.0, 1)) == 400
    assert 240 < len(replies(0.3, 1)) < 320  # false alarm: below one in 10,000
    assert replies(0.3, 1) == replies(0.3, 1) != replies(0.3, 2)


def test_with_nobody_left_the_simulation_ends_in_one_error(tmp_path):
    alone = FederationConfig(merchants=1, rounds=1, users=20, dropout=0.999, seed=1)
    with pytest.raises(RoundError, match="0 good reports, 1 needed"):
        simulate(alone)


def test_a_spread_leaves_a_tenth_out_on_either_side():
    spread = Spread.of([float(n) for n in range(20)])
    assert (spread.mean, spread.low, spread.high, spread.largest) == (9.5, 2.0, 17.0, 19.0)
    assert Spread.of([3.0]) == Spread(mean=3.0, low=3.0, high=3.0, largest=3.0)


def test_the_command_writes_facts_and_figure(tmp_path):
    options = ["--merchants", "2", "--rounds", "1", "--users", "20", "--out", str(tmp_path)]
    ran = CliRunner().invoke(app, ["simulate", *options], catch_exceptions=False)
    assert ran.exit_code == 0
    assert "2/2" in ran.stdout
    assert "epsilon of one shopper" in ran.stdout
    facts = json.loads((tmp_path / "federation.json").read_text())
    assert facts["config"]["merchants"] == 2
    assert facts["rounds"][0]["reports"] == 2
    assert (tmp_path / "federation.png").read_bytes().startswith(b"\x89PNG")
    drawing = (tmp_path / "federation.svg").read_text()
    assert "<svg" in drawing
    assert drawing.rstrip().endswith("</svg>")

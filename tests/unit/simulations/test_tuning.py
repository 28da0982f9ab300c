"""The search for a recipe: the defaults first, kept in a file, the same for the same seed."""

import json
import sqlite3
import sys
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from handbill.cli import app
from handbill.clients.merchant import Policy
from handbill.errors import InputError
from handbill.federation.aggregation import ServerOptimizer
from handbill.federation.messages import Recipe
from handbill.generator.interest import InterestModel
from handbill.generator.interest_spec import InterestSpec, Seen, hash_features
from handbill.server.settings import SETTINGS_FILE, ServerSettings
from handbill.simulations.arms import Arms, Settings, Shop, load_shops
from handbill.simulations.tuning import SPACE, Tuning, _importance, _shares

RECIPE = Recipe(rounds=3, expected_users=8, batch_rows=64)
SETTINGS = Settings(recipe=RECIPE, server=ServerOptimizer(learning_rate=0.03))


def shop(seed=1, users=100):
    draws = np.random.default_rng(seed)

    def row():
        colour = str(draws.choice(["red", "blue", "grey"]))
        return Seen(hash_features({"colour": colour}, buckets=32), colour == "red")

    return Shop(
        id="a",
        users=[[row()] for _ in range(users)],
        held_out=[row() for _ in range(30)],
        policy=Policy.for_users(users),
    )


def tuning(settings=SETTINGS, *, seed=0, base="tiny", data=1):
    model = InterestModel(InterestSpec(buckets=32, hidden=4, spread=1.0))
    return Tuning(model, [shop(data)], settings, seed=seed, base=base)


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A file with eight trials, and what the search told."""
    file = tmp_path_factory.mktemp("searched") / "tune.db"
    return file, tuning().run(file, trials=8)


def plain(found):
    """The trials without what a clock says."""
    return [replace(trial, seconds=0.0) for trial in found.trials]


def test_the_first_trial_is_the_defaults_and_the_best_is_no_worse(searched):
    _, found = searched
    first, *others = found.trials
    assert first.number == 0
    assert first.defaults
    assert not first.stopped
    assert first.values == tuning().defaults == tuning().defaults | {"rounds": 3}
    assert not any(trial.defaults for trial in others)
    assert found.ranking[0].loss <= first.loss
    assert len({tuple(trial.values.values()) for trial in found.trials}) == 8


def test_a_trial_that_was_stopped_is_not_the_best(tmp_path):
    class Lucky(Tuning):
        """Looks best after the first round and is given up after it."""

        def _objective(self, trial):
            from optuna import TrialPruned

            if trial.number:
                trial.set_user_attr("loss", 0.0)
                raise TrialPruned
            return super()._objective(trial)

    plainly = tuning()
    search = Lucky(plainly.model, plainly.shops, SETTINGS, seed=0, base="tiny")
    told = []
    found = search.run(tmp_path / "tune.db", trials=3, on_round=lambda *one: told.append(one))
    assert [one[:2] for one in told] == [(1, 3), (2, 3), (3, 3)]
    assert told[-1][2] == found.trials[0].loss
    assert [trial.stopped for trial in found.trials] == [False, True, True]
    assert [trial.number for trial in found.ranking] == [0]


def test_what_is_worse_than_the_others_is_stopped_before_its_last_round(tmp_path):
    """Losses that fall short by more with every trial: no training is needed to see it."""

    class Worse(Tuning):
        def _objective(self, trial):
            self.asked = trial.number
            return super()._objective(trial)

    plainly = tuning()
    search = Worse(plainly.model, plainly.shops, SETTINGS, seed=0, base="tiny")
    rounds = []

    def loss(self, shop, weights):
        rounds.append(search.asked)
        return 1.0 + search.asked

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Arms, "loss", loss)
        found = search.run(tmp_path / "tune.db", trials=6)
    assert [trial.stopped for trial in found.trials] == 4 * [False] + 2 * [True]
    assert rounds.count(5) < found.trials[5].values["rounds"]


def test_the_same_seed_finds_the_same_also_in_two_goes(searched, tmp_path):
    _, once = searched
    file = tmp_path / "tune.db"
    told = []
    tuning().run(file, trials=4, on_trial=told.append)
    again = tuning().run(file, trials=8, on_trial=told.append)
    assert [trial.number for trial in told] == list(range(8))  # none a second time
    assert plain(again) == plain(once)
    assert again.toml == once.toml


def test_a_search_that_is_done_trains_nothing(searched):
    file, found = searched
    told = []
    assert plain(tuning().run(file, trials=8, on_trial=told.append)) == plain(found)
    assert told == []


def test_after_the_minutes_no_trial_is_begun(tmp_path):
    assert tuning().run(tmp_path / "tune.db", trials=5, seconds=0).trials == ()


def test_ctrl_c_keeps_what_is_done_and_the_defaults_are_done_again(tmp_path, monkeypatch):
    real, calls = Tuning._objective, []

    def interrupted(self, trial):
        calls.append(trial.number)
        if len(calls) in {1, 3}:
            raise KeyboardInterrupt
        return real(self, trial)

    monkeypatch.setattr(Tuning, "_objective", interrupted)
    file = tmp_path / "tune.db"
    first = tuning().run(file, trials=3)
    assert first.interrupted
    assert first.trials == ()
    second = tuning().run(file, trials=3)
    assert second.interrupted
    assert [trial.defaults for trial in second.trials] == [True]
    third = tuning().run(file, trials=3)
    assert not third.interrupted
    assert [trial.defaults for trial in third.trials] == [True, False, False]
    assert [trial.number for trial in third.trials] == [0, 1, 2]


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (lambda: tuning(data=2), "market"),
        (lambda: tuning(replace(SETTINGS, epsilon=4.0)), r"epsilon 8.0, not 4.0"),
        (lambda: tuning(base="smollm"), "base tiny, not smollm"),
        (lambda: tuning(seed=1), "seed 0, not 1"),
        (lambda: tuning(replace(SETTINGS, recipe=replace(RECIPE, rounds=4))), "recipe.rounds"),
    ],
)
def test_the_file_of_another_search_is_refused_and_left_alone(searched, other, named):
    file, _ = searched
    before = file.read_bytes()
    with pytest.raises(InputError, match=f"another search .*{named}.*another --out"):
        other().run(file, trials=9)
    assert file.read_bytes() == before


@pytest.mark.parametrize("kind", ["text", "database"])
def test_a_file_that_is_no_search_is_refused_and_left_alone(tmp_path, kind):
    file = tmp_path / "ledger.db"
    if kind == "text":
        file.write_text("not a database, and long enough to be taken for one\n" * 30)
    else:
        with sqlite3.connect(file) as database:
            database.execute("CREATE TABLE entries (id INTEGER)")
        database.close()
    before = file.read_bytes()
    with pytest.raises(InputError, match="not the file of a search"):
        tuning().run(file, trials=1)
    assert file.read_bytes() == before


def test_the_snippet_is_settings_of_the_server(searched, tmp_path):
    _, found = searched
    (tmp_path / SETTINGS_FILE).write_text(found.toml)
    settings, best = ServerSettings.load(tmp_path), found.ranking[0].values
    assert settings.recipe.rounds == best["rounds"]
    assert settings.recipe.clipping_norm == best["clipping_norm"]
    assert settings.optimizer.learning_rate == best["server_learning_rate"]
    assert settings.recipe.batch_rows == RECIPE.batch_rows  # what is not searched stays


def test_settings_tried_are_within_what_policies_allow(searched):
    _, found = searched
    one = shop()
    most = one.policy.users * one.policy.max_sampling_rate
    for trial in found.trials:
        assert trial.values["expected_users"] <= most
        assert trial.values.keys() == SPACE.keys()


def test_a_market_of_small_shops_is_refused():
    model = InterestModel(InterestSpec(buckets=32, hidden=4, spread=1.0))
    with pytest.raises(InputError, match="no shop has enough shoppers to sample 8"):
        Tuning(model, [shop(users=20)], SETTINGS, seed=0, base="tiny")


@pytest.mark.parametrize("rounds", range(1, 21))
def test_the_end_of_every_round_has_a_share_and_up_to_ten_rounds_leave_no_gap(rounds):
    shares = [list(_shares(number, rounds)) for number in range(1, rounds + 1)]
    assert all(shares)
    assert shares[-1][0] == 10
    if rounds <= 10:
        flat = [share for some in shares[:-1] for share in some]
        assert flat == list(range(flat[0], 10)) if flat else rounds == 1


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_what_the_loss_hangs_on_is_told_once_enough_trials_are_done():
    import optuna

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for count in range(20):
        assert bool(_importance(study)) == (count >= 8)
        trial = study.ask()
        matters, _ = trial.suggest_float("matters", 0, 1), trial.suggest_float("other", 0, 1)
        study.tell(trial, matters)
    shares = _importance(study)
    assert shares["matters"] > shares["other"]
    assert sum(shares.values()) == pytest.approx(1)


def test_without_optuna_it_is_said_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r"pip install 'handbill\[tune\]'"):
        tuning().run(tmp_path / "tune.db", trials=1)


def test_copy_is_searched_for_too_and_no_shopper_is_told(tmp_path, shops, tiny_model, capfd):
    recipe = replace(RECIPE, rounds=3, expected_users=2, personal_steps=0)
    market = load_shops(shops, tiny_model, recipe, held_out=3)[:2]
    search = Tuning(tiny_model, market, replace(SETTINGS, recipe=recipe), seed=0, base="tiny")
    file = tmp_path / "tune.db"
    found = search.run(file, trials=2)
    assert [trial.stopped for trial in found.trials] == [False, False]
    assert capfd.readouterr() == ("", "")
    texts = {example.text.encode() for one in market for example in one.examples}
    assert texts
    assert not [text for text in texts if text in file.read_bytes()]


def test_the_command_prints_facts_and_is_plain_about_public_data(
    tmp_path, shops, tiny_base, monkeypatch
):
    from handbill.server import settings

    small = replace(RECIPE, rounds=3, expected_users=2)
    monkeypatch.setattr(
        settings, "ServerSettings", lambda **given: ServerSettings(**given, recipe=small)
    )
    words = ["tune", "--data", str(shops), "--base", str(tiny_base.path), "--layers", "1"]
    words += ["--shops", "1", "--rows", "2", "--out", str(tmp_path / "tune.db")]
    runner = CliRunner()
    told = runner.invoke(app, [*words, "--trials", "1", "--json"], catch_exceptions=False)
    assert "public data" in told.stderr
    assert "trial 0 (the defaults)" in told.stderr
    facts = json.loads(told.stdout)
    assert (facts["best"], len(facts["trials"])) == (0, 1)
    shown = runner.invoke(app, [*words, "--trials", "2"], catch_exceptions=False)
    assert "trial 1 (2 of 2)" in shown.stderr
    assert "server_learning_rate" in shown.stdout
    assert "PUBLIC" in runner.invoke(app, ["tune", "--help"]).stdout

    def interrupted(self, trial):
        raise KeyboardInterrupt

    monkeypatch.setattr(Tuning, "_objective", interrupted)
    left = runner.invoke(app, [*words, "--trials", "4"], catch_exceptions=False)
    assert left.exit_code == 130
    assert "2 of 4 trials are kept" in left.stderr

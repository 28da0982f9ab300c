"""The budget of a run: all of it fits before its first step, or the shop says so and stays out."""

from datetime import datetime, timedelta

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from handbill.clients.budget import Budget
from handbill.clients.journal import Journal
from handbill.clients.merchant import LEDGER_FILE, Policy
from handbill.errors import BudgetExhaustedError, PolicyError
from handbill.federation.messages import Instruction, Recipe
from handbill.generator.adapters import AdapterSpec
from handbill.privacy.accounting import epsilon
from handbill.privacy.events import PrivateSteps
from handbill.privacy.ledger import Ledger

SERVER = Ed25519PrivateKey.generate()
RECIPE = Recipe(rounds=3, local_steps=2, personal_steps=2, expected_users=20)
RATE = 0.1


class Shop:
    """A merchant's budget without a model: what matters is what is reserved."""

    def __init__(self, home, **policy):
        given = {"users": 200, "delta": 1e-3, "spare_rounds": 0, **policy}
        self.home, self.policy = home, Policy(**given)
        self.budget = Budget(home, self.policy, Journal(home / "journal"))

    def pays(self, number, *, stage="global", attempt=1, run="run-1", recipe=RECIPE):
        asked = Instruction(
            merchant="shop-a",
            run=run,
            round=number,
            attempt=attempt,
            stage=stage,
            parent="",
            base_digest="",
            spec=AdapterSpec(rank=2, layers=(0,)),
            recipe=recipe,
        )
        return self.budget.reserve(asked, RATE)

    def pays_for_a_run(self, run):
        return [
            *(self.pays(number, run=run) for number in (1, 2, 3)),
            self.pays(1, stage="personal", run=run),
        ]

    def events(self):
        path = self.home / LEDGER_FILE
        with Ledger(
            path, epsilon_limit=self.policy.epsilon_limit, delta=self.policy.delta, read_only=True
        ) as ledger:
            return ledger.events()

    def spent(self):
        return epsilon(self.events(), delta=self.policy.delta)

    def refuses(self, error, match, number=1, **given):
        before = self.events() if (self.home / LEDGER_FILE).exists() else ()
        with pytest.raises(error, match=match):
            self.pays(number, **given)
        assert self.events() == before


def test_a_run_that_begins_is_never_stopped_half_way_by_earlier_runs(tmp_path):
    shop = Shop(tmp_path, epsilon_limit=6.0, epsilon_per_run=3.0)
    whole = 0
    for n in range(9):
        try:
            shop.pays_for_a_run(f"run-{n}")
        except BudgetExhaustedError:
            break
        whole += 1
    assert whole > 1
    assert len(shop.events()) == 4 * whole  # nothing of the run that did not fit
    assert 3.0 < shop.spent() <= 6.0


def test_a_run_that_does_not_fit_is_refused_at_its_start_with_what_it_needs(tmp_path):
    shop = Shop(tmp_path, epsilon_limit=3.4, epsilon_per_run=3.0)
    shop.pays_for_a_run("run-1")
    one_step = PrivateSteps(
        noise_multiplier=shop.events()[0].noise_multiplier, sampling_rate=RATE, steps=2
    )
    assert (
        epsilon([*shop.events(), one_step], delta=1e-3) < 3.4
    )  # one round alone would have fitted
    spent = f"{shop.spent():.3f}"
    text = (
        rf"this run of 8 private steps would bring epsilon from {spent} to \d\.\d+ .* limit 3\.400"
    )
    shop.refuses(BudgetExhaustedError, text, run="run-2")
    shop.refuses(
        BudgetExhaustedError, "Lower epsilon_per_run in policy.toml", run="run-2", attempt=2
    )
    lower = Shop(tmp_path, epsilon_limit=3.4, epsilon_per_run=0.7)
    lower.pays_for_a_run("run-2")
    assert lower.spent() <= 3.4


def test_who_joins_late_needs_room_for_the_rounds_that_are_left(tmp_path):
    shop = Shop(tmp_path, epsilon_limit=3.4, epsilon_per_run=3.0)
    shop.pays_for_a_run("run-1")
    shop.refuses(BudgetExhaustedError, "this run of 8 private steps", run="run-2")
    shop.refuses(BudgetExhaustedError, "this run of 4 private steps", 3, run="run-2")
    shop.pays(1, stage="personal", run="run-2")  # two steps do fit


def test_a_repeated_attempt_pays_again_and_the_last_stage_may_not_fit(tmp_path):
    shop = Shop(tmp_path, epsilon_limit=3.0, epsilon_per_run=3.0)
    shop.pays(1)
    shop.pays(1, attempt=2)  # its trainer died in the first
    for number in (2, 3):
        shop.pays(number)
    text = r"repeated paid twice: 1\); refused, nothing was spent\. Raise epsilon_limit"
    shop.refuses(BudgetExhaustedError, text, stage="personal")
    assert len(shop.events()) == 4  # what was trained before stays, and stays within the limit
    assert shop.spent() <= 3.0


def test_room_between_a_run_and_the_limit_pays_for_a_repeated_attempt(tmp_path):
    shop = Shop(tmp_path, epsilon_limit=4.0, epsilon_per_run=3.0)
    shop.pays(1, attempt=1)
    shop.pays(1, attempt=2)
    for number in (2, 3):
        shop.pays(number)
    shop.pays(1, stage="personal")
    assert 3.0 < shop.spent() <= 4.0


def test_a_run_has_room_for_its_spare_rounds_and_no_more(tmp_path):
    assert Policy(users=200, delta=1e-3).spare_rounds == 1
    shop = Shop(tmp_path, epsilon_limit=3.0, epsilon_per_run=3.0, spare_rounds=1)
    for number in (1, 2, 3):
        shop.pays(number)
    shop.pays(3, attempt=2)
    shop.pays(1, stage="personal")
    assert 0.99 * 3.0 <= shop.spent() <= 3.0
    shop.refuses(BudgetExhaustedError, "repeated paid twice: 2", stage="personal", attempt=2)


def test_a_run_begins_only_with_room_for_its_spare_rounds(tmp_path):
    shop = Shop(tmp_path, epsilon_limit=3.0, epsilon_per_run=3.0, spare_rounds=1)
    shop.pays_for_a_run("run-1")
    assert shop.spent() < 2.9  # nothing had to be repeated
    shop.refuses(BudgetExhaustedError, "this run of 10 private steps", run="run-2")


def test_the_noise_of_a_run_is_one_and_the_same_whatever_was_spent_before(tmp_path):
    shop = Shop(tmp_path, epsilon_limit=6.0, epsilon_per_run=3.0)
    first, second = shop.pays_for_a_run("run-1"), shop.pays_for_a_run("run-2")
    assert len({event.noise_multiplier for event in first + second}) == 1
    np.testing.assert_allclose(epsilon(first, delta=1e-3), 3.0, rtol=0.01)


def test_an_epsilon_no_noise_can_reach_is_refused_and_names_the_policy(tmp_path):
    shop = Shop(tmp_path, epsilon_per_run=1e-6, delta=1e-6)
    text = r"policy\.toml: epsilon_per_run=1e-06 cannot be met by 8 steps .* nothing was spent"
    with pytest.raises(PolicyError, match=text):
        shop.pays(1)
    assert not (tmp_path / LEDGER_FILE).exists()


def test_a_stage_without_steps_costs_nothing_and_is_refused(tmp_path):
    shop = Shop(tmp_path)
    with pytest.raises(Exception, match="steps=0"):
        shop.pays(1, stage="personal", recipe=Recipe(rounds=3, personal_steps=0))
    assert not (tmp_path / LEDGER_FILE).exists()


def test_no_more_rounds_a_day_than_the_policy_allows(tmp_path):
    shop = Shop(tmp_path, max_rounds_per_day=2, epsilon_limit=20.0)
    shop.pays(1)
    shop.pays(2)
    shop.refuses(PolicyError, r"2 rounds were paid for within a day.*max_rounds_per_day=2", 3)
    Shop(tmp_path, max_rounds_per_day=3, epsilon_limit=20.0).pays(3)


def test_yesterdays_rounds_do_not_count_today(tmp_path, monkeypatch):
    shop = Shop(tmp_path, max_rounds_per_day=1)
    shop.pays(1)

    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + timedelta(days=1, seconds=5)

    monkeypatch.setattr("handbill.clients.budget.datetime", Tomorrow)
    shop.pays(2)

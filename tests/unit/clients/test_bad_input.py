"""Bad input at a merchant: one clear error before any budget is spent, or it does no harm."""

from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from handbill.clients.merchant import LEDGER_FILE, Merchant, Policy
from handbill.clients.trainer import Trainer
from handbill.errors import NonFiniteUpdateError, PolicyError, ProtocolError
from handbill.federation.messages import Instruction, Recipe, Report, Signed, open_signed, sign
from handbill.generator.artifacts import load_or_create_key
from handbill.privacy.ledger import Ledger

SERVER = Ed25519PrivateKey.generate()
RECIPE = Recipe(rounds=2, personal_steps=1, expected_users=8)
TOML = (
    '[shop]\nid = "shop-a"\n[rows]\nfile = "copy.csv"\n'
    'user = "who"\nitem = "what"\ntext = "copy"\ntitle = "title"\n'
)


class Shop:
    """One merchant, asked by the server of this file."""

    def __init__(self, home, base, model):
        self.home, self.base, self.model = home, base, model
        self.weights = {n: np.zeros(s, np.float32) for n, s in model.shapes.items()}
        self.start()

    def start(self, **policy):
        replace(Policy.load(self.home), **policy).save(self.home)
        self.trainer = Trainer(self.home, model=self.model)

    def sells(self, folder, rows_per_user):
        """Give the shop other data: one line per row, so many rows of each shopper."""
        folder.mkdir()
        (folder / "shop.toml").write_text(TOML)
        rows = [
            f"u{user},p{row},Lamp {row},Warm light {row} for shopper {user}"
            for user, count in enumerate(rows_per_user)
            for row in range(count)
        ]
        (folder / "copy.csv").write_text("\n".join(["who,what,title,copy", *rows]) + "\n")
        replace(Merchant.load(self.home), data=str(folder)).save(self.home)

    def ask(self, *, recipe=RECIPE, attempt=1, stage="global"):
        asked = Instruction(
            merchant="shop-a",
            run="run-1",
            round=1,
            attempt=attempt,
            stage=stage,
            parent="",
            base_digest=self.base.digest,
            spec=self.model.spec,
            recipe=recipe,
            expires_at=4e9,
        )
        reply = self.trainer.handle(sign(asked, self.weights, SERVER).to_bytes())
        key = load_or_create_key(self.home / "keys/signing.key").public_key()
        return open_signed(Signed.from_bytes(reply), key, Report)

    def events(self):
        path, policy = self.home / LEDGER_FILE, self.trainer.policy
        if not path.is_file():
            return ()
        with Ledger(
            path, epsilon_limit=policy.epsilon_limit, delta=policy.delta, read_only=True
        ) as ledger:
            return ledger.events()

    def refuses(self, error, match, **given):
        with pytest.raises(error, match=match):
            self.ask(**given)
        assert self.events() == ()

    def trains(self, **given):
        """It trains as any shop does: a finite update that is paid for as ever."""
        report, update = self.ask(**given)
        assert all(np.isfinite(v).all() and v.any() for v in update.values())
        (event,) = self.events()
        assert event.sampling_rate == RECIPE.expected_users / self.trainer.policy.users
        return report


@pytest.fixture
def shop(make_home, tiny_base, tiny_model):
    return Shop(make_home(SERVER.public_key()), tiny_base, tiny_model)


def test_weights_that_are_given_out_are_looked_at_before_they_are_kept(shop):
    kept = shop.home / "adapters" / "global.safetensors"
    good, shop.weights = shop.weights, {n: np.full_like(v, np.nan) for n, v in shop.weights.items()}
    shop.refuses(NonFiniteUpdateError, "not finite numbers", stage="deliver")
    assert not kept.exists()
    shop.weights = good
    shop.ask(stage="deliver")
    assert kept.exists()
    assert shop.events() == ()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(shop, value):
    good = dict(shop.weights)
    name = next(iter(good))
    shop.weights[name] = good[name].copy()
    shop.weights[name][0, 0] = value
    shop.refuses(NonFiniteUpdateError, "not finite numbers; nothing spent")
    shop.weights = good
    shop.trains()  # nor is it held against the same attempt from sound weights


def test_weights_of_another_type_are_refused(shop):
    shop.weights = {n: v.astype(np.float64) for n, v in shop.weights.items()}
    shop.refuses(ProtocolError, "not described as it should be")


def test_finite_weights_that_overflow_in_the_model_are_refused(shop):
    shop.weights = {n: np.full_like(v, 3e38) for n, v in shop.weights.items()}
    shop.refuses(NonFiniteUpdateError, "give no finite loss; nothing spent")


def test_a_shopper_without_rows_is_left_out(shop):
    users = shop.trainer.users
    shop.trainer.users = replace(users, train=((), *users.train, ()))
    shop.trains()


def blank(rows):
    return tuple(replace(row, text="\u2003 \n") for row in rows)


def test_rows_without_a_token_of_copy_are_left_out(shop):
    users = shop.trainer.users
    some = tuple(blank(rows) if n % 3 == 0 else rows for n, rows in enumerate(users.train))
    shop.trainer.users = replace(users, train=some)
    shop.trains()


def test_a_shop_without_a_token_of_copy_is_refused(shop):
    users = shop.trainer.users
    shop.trainer.users = replace(users, train=tuple(map(blank, users.train)))
    shop.refuses(PolicyError, r"fewer shoppers have copy to train on than min_users=10 of policy")


def test_one_shopper_with_99_percent_of_the_rows_counts_as_one(shop, tmp_path):
    shop.sells(tmp_path / "data", [1] * 30 + [2970])
    shop.start()
    shop.trains()


def test_data_that_shrank_below_the_policy_is_refused_without_its_number(shop, tmp_path):
    shop.sells(tmp_path / "data", [9] * 18)
    shop.start(users=200, min_users=20)  # as it was when the policy was written
    with pytest.raises(PolicyError, match="min_users=20") as refused:
        shop.ask()
    assert shop.events() == ()
    left = len(shop.trainer.users.train)
    assert 0 < left < 20
    assert str(left) not in str(refused.value)


def test_a_shop_smaller_than_a_batch_is_refused(shop):
    shop.start(max_sampling_rate=1.0)
    shop.refuses(PolicyError, "33 shoppers a step are 103%", recipe=Recipe(expected_users=33))
    shop.trains()


def test_an_epsilon_that_cannot_be_reached_is_refused(shop):
    shop.start(epsilon_per_run=1e-6, delta=1e-6)
    shop.refuses(PolicyError, r"policy\.toml: epsilon_per_run=1e-06 cannot be met")


def test_a_prompt_that_cannot_be_written_is_refused(shop):
    recipe = replace(RECIPE, max_prompt_tokens=4)
    shop.refuses(PolicyError, "max_prompt_tokens=4 is too small", recipe=recipe)

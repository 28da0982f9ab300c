"""A trainer that dies at every named point of a round, is started again and is asked again.

Each death is a real process that the fault point ends as a power cut would. Whatever the point:
no noise is drawn that is not in the ledger, no reservation pays for two different updates, what
was kept is sent again as it is, and one death wastes at most one reservation.
"""

import multiprocessing
import os

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.numpy import load_file

from handbill.clients.merchant import LEDGER_FILE
from handbill.clients.trainer import Trainer
from handbill.errors import LedgerError
from handbill.federation.messages import Instruction, Recipe, Report, Signed, open_signed, sign
from handbill.generator.artifacts import load_or_create_key
from handbill.privacy.accounting import epsilon
from handbill.privacy.faults import EXIT_CODE, VARIABLE
from handbill.privacy.ledger import Ledger
from handbill.privacy.noise import SecureNoise

pytestmark = pytest.mark.integration
SERVER = Ed25519PrivateKey.generate()
RECIPE = Recipe(rounds=3, local_steps=2, personal_steps=0, expected_users=8)
FORK = multiprocessing.get_context("fork")  # the trainer starts at once, with torch imported

NOTHING, WASTED, KEPT = "nothing was paid", "paid, and nothing kept", "paid and kept"
POINTS = {
    "trainer.before_reserve": NOTHING,
    "ledger.reserve.before_insert": NOTHING,
    "ledger.reserve.before_commit": NOTHING,
    "ledger.reserve.after_commit": WASTED,
    "step.before_sample": WASTED,
    "step.before_noise": WASTED,
    "step.after_noise": WASTED,
    "trainer.after_training": WASTED,
    "journal.keep.before_rename": WASTED,
    "trainer.kept": KEPT,
    "trainer.before_send": KEPT,
}


class CountedNoise(SecureNoise):
    """Secure noise that writes down, before it draws, that it draws."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def gaussian(self, like, stddev):
        with self.path.open("ab") as file:
            file.write(b".")
        return super().gaussian(like, stddev)


class Shop:
    """One merchant, asked by the server of this file; what it sends is kept as files."""

    def __init__(self, home, base, model):
        self.home, self.base, self.model = home, base, model
        self.draws, self.sent = home / "draws", home / "sent"
        self.draws.touch()
        self.sent.mkdir()

    def trainer(self):
        """A trainer that knows nothing but what is on the disk."""
        return Trainer(self.home, noise=CountedNoise(self.draws), model=self.model)

    def message(self, number, attempt):
        asked = Instruction(
            merchant="shop-a",
            run="run-1",
            round=number,
            attempt=attempt,
            stage="global",
            parent=f"sha256:{number}",
            base_digest=self.base.digest,
            spec=self.model.spec,
            recipe=RECIPE,
            expires_at=4e9,
        )
        weights = {n: np.zeros(s, np.float32) for n, s in self.model.shapes.items()}
        return sign(asked, weights, SERVER).to_bytes()

    def answer(self, message):
        """Answer as the daemon does, and send."""
        reply = self.trainer().handle(message)
        (self.sent / str(len(list(self.sent.iterdir())))).write_bytes(reply)
        key = load_or_create_key(self.home / "keys/signing.key").public_key()
        return open_signed(Signed.from_bytes(reply), key, Report)

    def dies_at(self, point, message):
        """Answer in a process of its own that dies at ``point``."""

        def work():
            os.environ[VARIABLE] = f"{point}=exit"
            self.answer(message)

        worker = FORK.Process(target=work)
        worker.start()
        worker.join(120)
        assert worker.exitcode == EXIT_CODE

    def paid(self):
        """Every event of the ledger, its chain verified."""
        path, policy = self.home / LEDGER_FILE, self.trainer().policy
        if not path.is_file():
            return ()
        with Ledger(
            path, epsilon_limit=policy.epsilon_limit, delta=policy.delta, read_only=True
        ) as ledger:
            return ledger.events()

    def kept(self):
        return [load_file(path) for path in (self.home / "journal").glob("*.safetensors")]

    def check(self):
        """What must hold at every moment."""
        steps_drawn = self.draws.stat().st_size  # one draw a step
        assert steps_drawn <= sum(event.steps for event in self.paid())
        reports = [Signed.from_bytes(path.read_bytes()) for path in self.sent.iterdir()]
        assert len({report.payload for report in reports}) <= len(self.paid())


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[n], other[n]) for n in one)


@pytest.fixture
def shop(make_home, tiny_base, tiny_model):
    home = make_home(SERVER.public_key(), epsilon_per_run=3.0)
    return Shop(home, tiny_base, tiny_model)


@pytest.mark.parametrize(("point", "then"), POINTS.items())
def test_a_trainer_that_dies_pays_for_all_it_drew_and_sends_nothing_twice(shop, point, then):
    first = shop.message(1, 1)
    shop.dies_at(point, first)
    shop.check()
    assert list(shop.sent.iterdir()) == []
    assert len(shop.paid()) == (0 if then == NOTHING else 1)
    kept = shop.kept()
    assert len(kept) == (1 if then == KEPT else 0)
    drawn = shop.draws.stat().st_size

    if then == WASTED:  # the same instruction again cannot be answered, and draws nothing
        with pytest.raises(LedgerError, match="a new noise draw needs a new attempt"):
            shop.answer(first)
        assert shop.draws.stat().st_size == drawn
        _, update = shop.answer(shop.message(1, 2))
    else:
        _, update = shop.answer(first)
    shop.check()
    if then == KEPT:
        assert same(update, kept[0])
        assert shop.draws.stat().st_size == drawn
    assert len(shop.paid()) == (2 if then == WASTED else 1)

    _, again = shop.answer(shop.message(1, 3))  # the server lost it: the same once more
    assert same(again, update)
    report, _ = shop.answer(shop.message(2, 1))  # and the run goes on
    shop.check()
    assert len(shop.paid()) == (3 if then == WASTED else 2)
    delta = shop.trainer().policy.delta
    assert report.privacy["epsilon"] == pytest.approx(epsilon(shop.paid(), delta=delta))
    assert report.ledger_head == (shop.home / "journal/ledger-head").read_text()


@pytest.mark.parametrize("point", ["step.after_noise", "trainer.kept"])
def test_many_deaths_waste_one_reservation_each_at_most(shop, point):
    for attempt in (1, 2):
        shop.dies_at(point, shop.message(attempt, attempt))
        assert len(shop.paid()) == attempt
        shop.check()
    shop.answer(shop.message(3, 1))
    assert len(shop.paid()) == 3
    shop.check()


def test_the_check_would_notice_a_draw_that_was_not_paid(shop):
    shop.answer(shop.message(1, 1))
    shop.draws.write_bytes(shop.draws.read_bytes() + b".")
    with pytest.raises(AssertionError):
        shop.check()


def test_the_check_would_notice_two_updates_for_one_reservation(shop):
    shop.answer(shop.message(1, 1))
    reply = Signed.from_bytes((shop.sent / "0").read_bytes())
    (shop.sent / "1").write_bytes(Signed(reply.header, reply.signature, b"other").to_bytes())
    with pytest.raises(AssertionError):
        shop.check()

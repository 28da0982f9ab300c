"""A server and real merchants in one process, which may die at any reply."""

import json

import pytest

from handbill.clients.trainer import Trainer
from handbill.federation.messages import Recipe
from handbill.federation.transport import InProcessTransport
from handbill.generator.adapters import read_adapter
from handbill.generator.artifacts import load_or_create_key, public_pem, utc_now, verify
from handbill.generator.vault import open_adapter
from handbill.privacy.noise import TestingNoise
from handbill.server.optimizer_state import load_state
from handbill.server.records import Merchant
from handbill.server.registry import open_registry
from handbill.server.settings import AdapterSettings, SecureAggregation, ServerSettings
from handbill.server.training import Training

SHOPS = ("shop-a", "shop-b", "shop-c", "shop-d", "shop-e", "shop-f")


class PowerCut(BaseException):
    """The process dies here; nothing in it can catch this."""


class Cable(InProcessTransport):
    """In-process merchants, with a server that dies when the ``cut_after``-th reply comes."""

    cut_after = None
    absent = ()

    def receive(self, timeout_s):
        if self.cut_after is not None:
            self.cut_after -= 1
            if self.cut_after < 0:
                self.cut_after = None
                raise PowerCut
        return super().receive(timeout_s)

    def merchants(self):
        """Every merchant, but for those absent at the first looks."""
        missing = self.absent and self.absent.pop(0)
        return [m for m in super().merchants() if m not in (missing or ())]


class Federation:
    """A server and merchants; their noise is fixed, so that runs can be compared."""

    run, power_cut = "run-1", PowerCut

    def __init__(self, folder, make_home, base, model, *, count=3, secure=False, **policies):
        self.home, self.model = folder / "server", model
        self.registry = open_registry(self.home, create=True)
        self.trainers = {
            shop: Trainer(
                make_home(
                    self.registry.public_key,
                    shop,
                    folder,
                    **{"secure_aggregation": secure, **policies.get(shop, {})},
                ),
                noise=TestingNoise(number, i_know_this_is_not_private=True),
                model=model,
            )
            for number, shop in enumerate(SHOPS[:count])
        }
        for shop, trainer in self.trainers.items():
            key = load_or_create_key(trainer.home / "keys/signing.key").public_key()
            pem = public_pem(key).decode()
            self.registry.enrol(
                Merchant(id=shop, name=shop, public_key=pem, node_key="", enrolled_at=utc_now())
            )
        self.handlers = {shop: trainer.handle for shop, trainer in self.trainers.items()}
        self.cable = Cable(self.handlers)
        recipe = Recipe(rounds=3, personal_steps=0, expected_users=8, rows_per_user=2)
        self.settings = {
            "base": str(base.path),
            "min_reports": 2,
            "secure_aggregation": SecureAggregation(enabled=secure),
            "adapter": AdapterSettings(rank=2, alpha=4.0, layers=1),
            "recipe": recipe,
        }

    def start_again(self, what="copy", **settings):
        """A new process: nothing of the old one is left but the disk."""
        self.registry.database.close()
        self.cable.forget()
        self.registry = open_registry(self.home)
        self.settings |= settings
        return Training(
            self.home,
            self.cable,
            self.registry,
            ServerSettings(**self.settings),
            model=self.model,
            what=what,
        )

    def train(self, *, publish=False, **settings):
        self.start_again(**settings).train(self.run, publish=publish)

    def rounds(self, status="committed", stage="global"):
        with self.registry.database.begin() as uow:
            return [r for r in uow.rounds.all() if (r.status, r.stage) == (status, stage)]

    def artifacts(self):
        with self.registry.database.begin() as uow:
            return uow.artifacts.all()

    def weights(self, number):
        (one,) = [r for r in self.rounds() if r.number == number]
        return read_adapter(self.registry.store.path(one.aggregate)).tensors

    def own(self, artifact):
        """A merchant's own adapter, unlocked."""
        folder = self.registry.store.path(artifact.digest)
        manifest = verify(folder, self.registry.public_key)
        return open_adapter(folder, manifest, self.registry.vault).tensors

    def state(self, number):
        (one,) = [r for r in self.rounds() if r.number == number]
        return load_state(self.home, one.aggregate, self.model.shapes)

    def facts(self, event):
        lines = (self.home / "progress.jsonl").read_text().splitlines()
        return [fact for fact in map(json.loads, lines) if fact["event"] == event]


@pytest.fixture
def make(tmp_path, make_home, tiny_base, tiny_model, monkeypatch):
    monkeypatch.delenv("HANDBILL_DATABASE", raising=False)
    made = []

    def federation(name="one", **given):
        made.append(Federation(tmp_path / name, make_home, tiny_base, tiny_model, **given))
        return made[-1]

    yield federation
    for one in made:
        one.registry.database.close()


@pytest.fixture
def one(make):
    return make()

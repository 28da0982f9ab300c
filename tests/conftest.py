"""What tests of several rooms share: a tiny base model, small shops, merchants' homes."""

import logging
import sys
import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no failure.
settings.register_profile("handbill", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("handbill")


def pytest_addoption(parser):
    parser.addoption(
        "--engine", choices=("torch", "vllm"), default="torch", help="Engine of tests of engines."
    )


SHOPS = ("shop-a", "shop-b", "shop-c", "shop-d", "shop-e", "shop-f")


@pytest.fixture(scope="session")
def engine_kind(request):
    """Which engine tests of engines run: ``torch``, or ``vllm`` in ``make test-vllm``."""
    return request.config.getoption("--engine")


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    """A tiny random base model; one thread, because tests share the machine."""
    import torch

    from handbill.generator.base_models import make_tiny_base, resolve_base

    torch.set_num_threads(1)
    folder = make_tiny_base(tmp_path_factory.mktemp("base") / "tiny", layers=2, hidden=32)
    return resolve_base(str(folder))


@pytest.fixture(scope="session")
def tiny_model(tiny_base):
    """The base model with an adapter on its upper layer; whoever uses it loads weights first."""
    from handbill.generator.adapters import AdapterSpec
    from handbill.generator.lora import LoraModel

    return LoraModel(tiny_base, AdapterSpec(rank=2, alpha=4.0, layers=(1,)))


@pytest.fixture(scope="session")
def shops(tmp_path_factory):
    """A folder of six invented shops with 40 shoppers each."""
    from handbill.simulations.grammar import SHOPS as VOICES
    from handbill.simulations.grammar import Draws, read_vocabulary
    from handbill.simulations.market import write_shop

    folder = tmp_path_factory.mktemp("shops")
    for shop, voice in zip(SHOPS, 2 * VOICES, strict=True):
        words = read_vocabulary(voice) | {"id": shop, "name": shop}
        write_shop(folder / shop, words, Draws(1, shop), 40)
    return folder


@pytest.fixture
def make_home(tmp_path, tiny_base, shops):
    """Write a merchant's home: ``make_home(server public key, shop, folder, **policy)``."""
    from handbill.clients.merchant import SERVER_KEY, Merchant, Policy
    from handbill.generator.artifacts import public_pem

    def make(server_key, shop="shop-a", folder=None, **policy):
        home = (folder or tmp_path / "homes") / shop
        merchant = Merchant(
            id=shop,
            name=shop,
            data=str(shops / shop),
            server="in-process",
            base=str(tiny_base.path),
            threads=1,
        )
        merchant.save(home)
        given = {
            "min_users": 10,
            "max_sampling_rate": 0.5,
            "held_out": 0.2,
            "secure_aggregation": False,  # most tests have too few merchants for it
            **policy,
        }
        Policy.for_users(40, **given).save(home)
        (home / SERVER_KEY).parent.mkdir(parents=True)
        (home / SERVER_KEY).write_bytes(public_pem(server_key))
        return home

    return make


@pytest.fixture
def random_update():
    """Draw an update for given shapes: ``random_update(shapes, seed, scale=1.0)``."""

    def draw(shapes, seed=0, *, scale=1.0):
        draws = np.random.default_rng(seed)
        return {
            name: (scale * draws.standard_normal(shape)).astype(np.float32)
            for name, shape in shapes.items()
        }

    return draw


@pytest.fixture(autouse=True)
def _logs_as_before():
    """Whatever a test does to how this process logs, the next one finds it as it was."""
    ours, factory = logging.getLogger("handbill"), logging.getLogRecordFactory()
    level, hooks = ours.level, (sys.excepthook, threading.excepthook)
    yield
    ours.setLevel(level)
    logging.setLogRecordFactory(factory)
    sys.excepthook, threading.excepthook = hooks


@pytest.fixture
def log_file(tmp_path):
    """A file to configure logs to; the root logger is as before afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers = []  # else configure_logs would close them
    yield tmp_path / "a.log"
    for handler in root.handlers:
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)

"""A registry with real artifacts, on SQLite and on a PostgreSQL server of our own."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from handbill.generator.adapters import AdapterSpec, trained_shapes, write_adapter
from handbill.generator.artifacts import public_pem, utc_now, verify
from handbill.generator.base_models import make_tiny_base, resolve_base
from handbill.generator.channels import read_channel
from handbill.generator.vault import open_weights
from handbill.server.records import Invitation, Merchant, Run
from handbill.server.registry import Registry

PEM = public_pem(Ed25519PrivateKey.generate().public_key()).decode()


def new_node_key(curve=ec.SECP384R1):
    """What a SuperNode signs with, as it stands in an enrolment request."""
    public = ec.generate_private_key(curve()).public_key()
    openssh = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    return public.public_bytes(*openssh).decode()


def enrol(registry, merchant):
    registry.enrol(
        Merchant(
            id=merchant,
            name=f"The shop {merchant}",
            public_key=PEM,
            node_key="ssh-node-key",
            enrolled_at=utc_now(),
        )
    )


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "tiny"
    return resolve_base(str(make_tiny_base(folder)))


@pytest.fixture
def key():
    return Ed25519PrivateKey.generate()


@pytest.fixture
def registry(tmp_path, key, database_url):
    registry = Registry(tmp_path / "server", key, url=database_url)
    registry.vault.create_kek()
    yield registry
    registry.database.close()


class Operator:
    """Does by hand what the round loop does."""

    def __init__(self, registry, base, folder):
        self.registry, self.base, self.folder = registry, base, folder
        self.spec = AdapterSpec(rank=2, alpha=4.0, layers=(0, 1), seed=1)
        self.run = "run-1"
        self.draws = np.random.default_rng(0)
        registry.start_run(
            Run(
                id=self.run,
                base_name=base.name,
                base_digest=base.digest,
                recipe={"rounds": 3},
                adapter=self.spec.to_dict(),
                started_at=utc_now(),
            )
        )

    def adapter(self, tenant=""):
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        tensors = {
            name: self.draws.standard_normal(shape).astype(np.float32)
            for name, shape in trained_shapes(self.spec, self.base).items()
        }
        lock = self.registry.locker(tenant) if tenant else None
        how = {"spec": self.spec, "base": self.base, "card": "# a card\n", "lock": lock}
        write_adapter(folder, tensors=tensors, **how)
        return folder

    def sealed(self, number, parent="", *, kind="global", tenant=""):
        folder = self.adapter(tenant)
        self.registry.seal(
            folder,
            kind=kind,
            tenant=tenant,
            base_name=self.base.name,
            base_digest=self.base.digest,
            parent=parent,
            run=self.run,
            round=number,
            metrics={"loss": 3.0 - number / 10},
            privacy=[
                {"merchant": "shop-a", "epsilon": 2.0 + number, "delta": 1e-5, "rounds": number}
            ],
        )
        return folder

    def commit(self, attempt, folder, parent="", **facts):
        given = {
            "survivors": attempt.cohort,
            "ledger_heads": {"shop-a": "ab" * 32},
            "metrics": {"probe_loss": 2.5},
            "bytes_down": 1000,
            "bytes_up": 500,
            "seconds": 1.25,
            **facts,
        }
        return self.registry.commit_round(attempt, folder=folder, parent=parent, **given)

    def round(self, number, parent=""):
        attempt = self.registry.open_round(self.run, number, "global", ["shop-a", "shop-b"])
        return self.commit(attempt, self.sealed(number, parent), parent).aggregate

    def tenant_artifact(self, tenant, parent):
        folder = self.sealed(0, parent, kind="tenant", tenant=tenant)
        return self.registry.register_tenant_artifact(folder).digest


@pytest.fixture
def operator(registry, base, tmp_path):
    return Operator(registry, base, tmp_path)


@pytest.fixture
def shops(operator):
    """Two merchants with two adapters each, the newer one served; a global model is served."""
    registry = operator.registry
    for merchant in ("shop-a", "shop-b"):
        enrol(registry, merchant)
    everyone = operator.round(1)
    own = {
        m: [operator.tenant_artifact(m, everyone) for _ in range(2)] for m in ("shop-a", "shop-b")
    }
    registry.channels.publish("", everyone)
    for merchant, (older, newer) in own.items():
        registry.channels.publish(merchant, older)
        registry.channels.publish(merchant, newer)
    with registry.database.begin() as uow:
        for key, used in (("k1", ""), ("k2", utc_now())):
            uow.invitations.add(
                Invitation(key=key, merchant="shop-a", expires_at="2030-01-01", used_at=used)
            )
        uow.commit()
    return own


def opened(registry, digest):
    folder = registry.store.path(digest)
    return open_weights(folder, verify(folder, registry.public_key), registry.vault)


def served(registry, tenant):
    return read_channel(registry.root, tenant, registry.public_key).digest

"""Adapters of random numbers, signed and published: what a service is tried with when no training is needed."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from handbill.generator.adapters import AdapterSpec, trained_shapes, write_adapter
from handbill.generator.artifacts import (
    ArtifactStore,
    load_or_create_key,
    public_pem,
    seal,
    utc_now,
)
from handbill.generator.base_models import BaseModel
from handbill.generator.channels import Channel, write_channel
from handbill.generator.vault import Vault


class RandomPublisher:
    """Publishes into ``HOME/server/registry``, which it makes.

    Args:
        home: Where.
        base: What the adapters are for.
        layers: Which layers they change.
        rank: Of the adapters.
        scale: Standard deviation of their numbers.
    """

    def __init__(
        self,
        home: Path,
        base: BaseModel,
        *,
        layers: tuple[int, ...] = (1,),
        rank: int = 4,
        scale: float = 1.0,
    ) -> None:
        self.registry = home / "server" / "registry"
        self._home, self._base, self._scale = home, base, scale
        self._spec = AdapterSpec(rank=rank, layers=layers)
        self._key = load_or_create_key(home / "server" / "keys" / "publisher.pem")
        self._serial = 0

    def add(self, tenant: str, version: int, *, seed: int | None = None) -> str:
        """Put an adapter into the store, everyone's for the tenant ``""``; return its digest.

        Its numbers follow from the seed, which is the version if not given.
        """
        seed = version if seed is None else seed
        folder = self._home / "adapters" / f"{tenant}-{version}"
        spec = replace(self._spec, seed=seed)
        draws = np.random.default_rng(seed)
        tensors = {
            name: (self._scale * draws.standard_normal(shape)).astype(np.float32)
            for name, shape in trained_shapes(spec, self._base).items()
        }
        lock = None
        if tenant:
            vault = Vault(self.registry)
            vault.create_kek()
            vault.add(tenant)
            lock = partial(vault.lock, tenant)
        write_adapter(folder, spec=spec, base=self._base, tensors=tensors, card="test\n", lock=lock)
        seal(
            folder,
            key=self._key,
            kind="tenant" if tenant else "global",
            tenant=tenant,
            version=version,
            base_name=self._base.name,
            base_digest=self._base.digest,
        )
        digest = ArtifactStore(self.registry / "store").add(folder)
        (self.registry / "publisher.pub").write_bytes(public_pem(self._key.public_key()))
        return digest

    def point(self, tenant: str, digest: str) -> None:
        """Serve a tenant, or everyone, this artifact."""
        self._serial += 1
        channel = Channel(tenant=tenant, digest=digest, serial=self._serial, published=utc_now())
        write_channel(self.registry, channel, self._key)

    def publish(self, tenant: str, version: int, *, seed: int | None = None) -> str:
        """Add and serve."""
        digest = self.add(tenant, version, seed=seed)
        self.point(tenant, digest)
        return digest

"""Merchants and a server in one place, who go through a session step by step."""

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from handbill.federation.secagg.aggregator import Aggregator
from handbill.federation.secagg.participant import Participant
from handbill.federation.secagg.ring import Ring
from handbill.federation.secagg.session import SessionKeys

CONTEXT = b"c" * 32


class Session:
    """One session with all its parties; a test leaves merchants out, or lies in between."""

    def __init__(self, count=6, *, dimension=40, ring=None, contexts=None, advertised=None):
        self.ring, self.dimension = ring or Ring(), dimension
        self.names = [f"shop-{n:02d}" for n in range(count)]
        self.identities = {name: Ed25519PrivateKey.generate() for name in self.names}
        self.roster = {name: key.public_key() for name, key in self.identities.items()}
        generator = np.random.default_rng(count)
        self.vectors = {
            name: generator.integers(0, 2**self.ring.value_bits, dimension, dtype=np.uint32)
            for name in self.names
        }
        self.burnt = []
        self.keys = {name: SessionKeys() for name in self.names}
        self.participants = {
            name: self.participant(name, (contexts or {}).get(name, CONTEXT)) for name in self.names
        }
        self.server = Aggregator(
            self.roster, context=CONTEXT, ring=self.ring, dimension=self.dimension
        )
        for name in advertised or self.names:
            self.server.advertised(name, self.advert(name))

    def participant(self, name, context=CONTEXT, **changed):
        return Participant(
            name,
            self.keys[name],
            self.identities[name],
            changed.get("roster", self.roster),
            context=context,
            ring=changed.get("ring", self.ring),
            dimension=self.dimension,
            burn=lambda: self.burnt.append(name),
        )

    def advert(self, name):
        return self.keys[name].advertise(name, self.identities[name])

    def share(self, names=None):
        request = self.server.share_request()
        for name in names or self.names:
            self.server.shared(name, self.participants[name].share(request))

    def mask(self, names=None):
        for name in names or self.names:
            request = self.server.mask_request(name)
            answer = self.participants[name].mask(request, self.vectors[name].copy())
            self.server.masked(name, answer)

    def agree(self, names=None, lost=()):
        request = self.server.agree_request(lost)
        for name in names or self.names:
            self.server.agreed(name, self.participants[name].agree(request))

    def unmask(self, names=None):
        request = self.server.unmask_request()
        for name in names or self.names:
            self.server.unmasked(name, self.participants[name].unmask(request))

    def sum_of(self, names):
        total = sum(self.vectors[name].astype(np.uint64) for name in names)
        return (total % 2**self.ring.bits).astype(np.uint32)


@pytest.fixture(scope="session")
def open_session():
    """The class above: test modules cannot import it."""
    return Session

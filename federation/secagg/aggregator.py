"""The server's side of a session of secure aggregation. It is trusted with nothing but the sum."""

import hashlib
import io
import itertools
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO, Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from handbill.errors import ProtocolError, RoundError
from handbill.federation.fields import read_object
from handbill.federation.sealed import unseal
from handbill.federation.secagg.masks import Sign, Words, add_masks
from handbill.federation.secagg.participant import MOST_PROPOSALS
from handbill.federation.secagg.ring import Ring
from handbill.federation.secagg.session import Advert, Session, commitment
from handbill.federation.secagg.sharing import SECRET_BYTES, Interpolation
from handbill.generator.artifacts import canonical_json

_SHARE: Final = re.compile(r"[0-9a-f]{132}")
_CIPHERTEXT: Final = re.compile(r"[A-Za-z0-9+/]{198}==")  # of two shares and a tag
_MOST_TRIES: Final = 5000  # sets of shares tried before a secret is given up


@dataclass(frozen=True, slots=True)
class SecureSum:
    """What a session opened.

    Attributes:
        total: The sum, shape (d,), modulo the ring.
        survivors: Whose vectors are in it.
        liars: Participants whose shares of others' secrets were wrong.
    """

    total: Words
    survivors: tuple[str, ...]
    liars: tuple[str, ...]


class Aggregator:
    """One session. Each ``*_request`` closes a phase; what comes later is refused.

    Memory holds one vector: masked vectors are added up as they come, and kept in ``spool``, from
    where that of a merchant lost later is taken out of the sum again.
    """

    def __init__(
        self,
        roster: Mapping[str, Ed25519PublicKey],
        *,
        context: bytes,
        ring: Ring,
        dimension: int,
        spool: BinaryIO | None = None,
    ) -> None:
        """Open a session for some of the roster; ``spool`` is a file for masked vectors."""
        self._roster, self._context = roster, context
        self._ring, self._dimension = ring, dimension
        self._spool = io.BytesIO() if spool is None else spool
        self._adverts: dict[str, bytes] = {}
        self._keys: set[str] = set()  # advertised
        self._session: Session
        self._shares: dict[str, dict[str, str]] = {}  # giver -> receiver -> ciphertext
        self._total = np.zeros(dimension, np.uint32)
        self._masked: dict[str, tuple[int, int]] = {}  # place in the spool and length
        self._survivors: set[str] = set()
        self._proposals = 0
        self._agreements: dict[str, str] = {}
        self._unmasked: dict[str, dict[str, dict[str, str]]] = {}
        self._interpolations: dict[tuple[int, ...], Interpolation] = {}
        self._liars: set[str] = set()

    def advertised(self, merchant: str, advert: bytes) -> None:
        """Take a merchant's signed advert.

        Raises:
            ProtocolError: It is not to be trusted, or holds a key that was advertised before.
        """
        read = Advert.read(advert, merchant, self._roster[merchant])
        keys = {read.encryption, read.masking}
        if len(keys) < 2 or keys & self._keys:  # for which everybody would refuse the session
            raise ProtocolError("advert holds a key that was advertised before")
        self._keys |= keys
        self._adverts[merchant] = advert

    def share_request(self) -> bytes:
        """What everybody who advertised is asked next."""
        self._session = Session.of(
            self._adverts,
            self._roster,
            context=self._context,
            ring=self._ring,
            dimension=self._dimension,
        )
        return canonical_json({"adverts": {n: data.decode() for n, data in self._adverts.items()}})

    def shared(self, merchant: str, answer: bytes) -> None:
        """Take a merchant's encrypted shares: one for each other participant."""
        shares = read_object(answer).get("shares")
        others = self._session.adverts.keys() - {merchant}
        if not isinstance(shares, dict) or shares.keys() != others:
            raise ProtocolError("not one share for each other participant")
        if not all(_matches(_CIPHERTEXT, share) for share in shares.values()):
            raise ProtocolError("an encrypted share is malformed")
        self._shares[merchant] = shares

    def mask_request(self, merchant: str) -> bytes:
        """What one of those who shared is asked next: the others' shares for it."""
        givers = sorted(self._shares.keys() - {merchant})
        return canonical_json(
            {"shares": {giver: self._shares[giver][merchant] for giver in givers}}
        )

    def masked(self, merchant: str, answer: bytes) -> None:
        """Add a masked vector to the sum."""
        length = int.from_bytes(answer[:4], "big")
        head, raw = answer[4 : 4 + length], memoryview(answer)[4 + length :]
        body = unseal(head, "secagg/masked", self._roster[merchant])
        if body != {
            "transcript": self._session.transcript.hex(),
            "sha256": hashlib.sha256(raw).hexdigest(),
        }:
            raise ProtocolError("masked vector is of another session, or was changed")
        if merchant not in self._shares or merchant in self._masked:
            raise ProtocolError("masked vector of a merchant that did not share, or a second one")
        vector = self._ring.from_bytes(raw, self._dimension)
        self._masked[merchant] = self._spool.seek(0, io.SEEK_END), len(raw)
        self._spool.write(raw)
        self._total += vector
        self._survivors.add(merchant)

    def agree_request(self, lost: Collection[str] = ()) -> bytes:
        """What everybody whose vector is in the sum is asked next.

        Args:
            lost: Those who did not agree in time; they are taken out of the sum.

        Raises:
            RoundError: Too few are left.
        """
        for merchant in self._survivors & set(lost):
            start, length = self._masked[merchant]
            self._spool.seek(start)
            self._total -= self._ring.from_bytes(self._spool.read(length), self._dimension)
            self._survivors.discard(merchant)
        self._proposals += 1
        if self._proposals > MOST_PROPOSALS:
            raise RoundError("merchants were lost again and again while they agreed on a sum")
        try:
            self._session.check_survivors(self._survivors, of=set(self._shares))
        except ProtocolError as error:
            raise RoundError(f"the sum cannot be opened: {error}") from error
        self._agreements = {}
        return canonical_json({"survivors": sorted(self._survivors)})

    def agreed(self, merchant: str, answer: bytes) -> None:
        """Take a merchant's signature on the set of survivors."""
        expected = self._session.agreement(self._survivors)
        if unseal(answer, "secagg/survivors", self._roster[merchant]) != expected:
            raise ProtocolError("signed for another set of survivors")
        self._agreements[merchant] = answer.decode()

    def unmask_request(self) -> bytes:
        """What the survivors are asked last: everybody's signature on the one set."""
        if missing := sorted(self._survivors - self._agreements.keys()):
            raise RoundError(f"{missing[0]} did not agree to the sum")
        return canonical_json({"agreements": self._agreements})

    def unmasked(self, merchant: str, answer: bytes) -> None:
        """Take the shares that a merchant holds of what opens this sum."""
        fields = read_object(answer)
        lost = self._shares.keys() - self._survivors
        for name, owners in (("seeds", self._survivors), ("maskings", lost)):
            shares = fields.get(name)
            if not isinstance(shares, dict) or shares.keys() != owners:
                raise ProtocolError("not one share of each secret that is needed")
            if not all(_matches(_SHARE, share) for share in shares.values()):
                raise ProtocolError("a share is malformed")
        self._unmasked[merchant] = fields

    def finish(self) -> SecureSum:
        """Recover the secrets, take the masks away.

        Raises:
            RoundError: Too few shares, or a merchant shared something else than its secrets.
        """
        if len(self._unmasked) < self._session.threshold:
            raise RoundError(
                f"{len(self._unmasked)} merchants helped to unmask the sum, "
                f"{self._session.threshold} needed"
            )
        masks: list[tuple[bytes, Sign]] = []
        for merchant in sorted(self._survivors):
            promised = self._session.adverts[merchant].commitment
            seed = self._recover(merchant, "seeds", commitment, promised)
            masks.append((self._session.self_key(seed), -1))
        for merchant in sorted(self._shares.keys() - self._survivors):
            public = self._session.adverts[merchant].masking
            secret = self._recover(merchant, "maskings", _public, public)
            key = X25519PrivateKey.from_private_bytes(secret)
            # The survivors' halves of these masks are in the sum: the lost one's cancel them.
            masks += self._session.pair_keys(merchant, key, self._survivors)
        add_masks(self._total, masks)
        self._ring.reduce(self._total)
        return SecureSum(self._total, tuple(sorted(self._survivors)), tuple(sorted(self._liars)))

    def _recover(
        self, owner: str, kind: str, publish: Callable[[bytes], str], public: str
    ) -> bytes:
        """The secret of which ``public`` was advertised; names who holds a share that is not of it."""
        shares = {
            self._session.point(holder): bytes.fromhex(answer[kind][owner])
            for holder, answer in self._unmasked.items()
        }
        for points in itertools.islice(self._sets(sorted(shares)), _MOST_TRIES):
            value = self._interpolation(points, at=0).value(shares)
            if value >= 2 ** (8 * SECRET_BYTES):
                continue
            secret = value.to_bytes(SECRET_BYTES, "big")
            if publish(secret) == public:
                self._name_liars(points, shares)
                return secret
        raise RoundError(f"{owner} shared something else than its secret; the sum stays closed")

    def _sets(self, points: list[int]) -> Iterator[tuple[int, ...]]:
        """Enough shares to open a secret: all sets that leave out none, one, two ... holders."""
        liars = {self._session.point(liar) for liar in self._liars}
        trusted_first = sorted(points, key=lambda point: (point in liars, point))
        enough = self._session.threshold
        for left_out in range(len(points) - enough + 1):
            for gone in itertools.combinations(trusted_first, left_out):
                yield tuple([p for p in trusted_first if p not in gone][:enough])

    def _name_liars(self, points: tuple[int, ...], shares: Mapping[int, bytes]) -> None:
        """Whoever's share is not on the polynomial that gave the right secret."""
        for point in shares.keys() - set(points):
            expected = self._interpolation(points, at=point).value(shares)
            if expected != int.from_bytes(shares[point], "big"):
                self._liars.add(list(self._session.adverts)[point - 1])

    def _interpolation(self, points: tuple[int, ...], *, at: int) -> Interpolation:
        """Weights for a set of points, worked out once: all secrets are shared at the same."""
        key = (at, *points)
        if key not in self._interpolations:
            self._interpolations[key] = Interpolation(points, at=at)
        return self._interpolations[key]


def _matches(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _public(masking: bytes) -> str:
    return X25519PrivateKey.from_private_bytes(masking).public_key().public_bytes_raw().hex()

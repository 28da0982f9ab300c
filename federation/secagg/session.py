"""What both sides of a session agree on: its keys, its floors and its transcript."""

import hashlib
import re
import secrets
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from handbill.errors import ProtocolError
from handbill.federation.fields import read_as
from handbill.federation.sealed import seal, unseal
from handbill.federation.secagg.masks import Sign, derive
from handbill.federation.secagg.ring import MOST_PARTICIPANTS, Ring
from handbill.generator.artifacts import canonical_json

_ANY_KEY: Final = X25519PrivateKey.generate()
MIN_COHORT: Final = 5  # fewer may not be summed, whatever a server asks for
_FIELD: Final = 2**255 - 19


def threshold(participants: int) -> int:
    """Shares that open a secret, and members a sum must have at least: over two thirds.

    Fewer than a third of the participants may work with a lying server: two sets of survivors
    would need 2t answers, which honest participants, who answer once, do not give.
    """
    return 2 * participants // 3 + 1


@dataclass(frozen=True, slots=True)
class SessionKeys:
    """One merchant's secrets for one session; never written to disk, never used again.

    Attributes:
        encryption: Opens what others share with this merchant.
        masking: Agrees on masks with each other merchant.
        seed: Of the merchant's own mask.
    """

    encryption: X25519PrivateKey = field(default_factory=X25519PrivateKey.generate, repr=False)
    masking: X25519PrivateKey = field(default_factory=X25519PrivateKey.generate, repr=False)
    seed: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    def advertise(self, merchant: str, key: Ed25519PrivateKey) -> bytes:
        """The public halves and a commitment to the seed, signed."""
        body = {
            "merchant": merchant,
            "encryption": self.encryption.public_key().public_bytes_raw().hex(),
            "masking": self.masking.public_key().public_bytes_raw().hex(),
            "commitment": commitment(self.seed),
        }
        return seal("secagg/advert", body, key)


@dataclass(frozen=True, slots=True)
class Advert:
    """What a merchant advertised, checked."""

    merchant: str
    encryption: str
    masking: str
    commitment: str

    @classmethod
    def read(cls, data: bytes, merchant: str, key: Ed25519PublicKey) -> "Advert":
        """Check a signed advert against the merchant's key of the roster.

        Raises:
            ProtocolError: Signed by another, for another, or malformed; a key that nothing can be
                agreed on with, or one key for both uses.
        """
        advert = read_as(cls, unseal(data, "secagg/advert", key))
        if advert.merchant != merchant:
            raise ProtocolError(f"advert of {advert.merchant[:64]!r} was given out as {merchant}'s")
        if not all(map(_is_hash_or_point, (advert.encryption, advert.masking, advert.commitment))):
            raise ProtocolError(f"advert of {merchant} is malformed")
        if advert.encryption == advert.masking:
            raise ProtocolError(f"{merchant} advertised the same key twice")
        # Whether a key is of low order shows with any private key: one who refuses is enough, and
        # it should be the server, or every merchant of the session would have to.
        for name in (advert.encryption, advert.masking):
            point = bytes.fromhex(name)
            if int.from_bytes(point, "little") >= _FIELD:  # a second name of another point
                raise ProtocolError(f"advert of {merchant} is malformed")
            agree(_ANY_KEY, X25519PublicKey.from_public_bytes(point), merchant)
        return advert

    def encryption_key(self) -> X25519PublicKey:
        """Shares for this merchant are encrypted to it."""
        return X25519PublicKey.from_public_bytes(bytes.fromhex(self.encryption))

    def masking_key(self) -> X25519PublicKey:
        """Masks with this merchant are agreed with it."""
        return X25519PublicKey.from_public_bytes(bytes.fromhex(self.masking))


@dataclass(frozen=True, slots=True)
class Session:
    """The adverts of everybody in it, and the transcript that all its keys depend on.

    The transcript holds the context (which model, round and recipe), the ring and every advert:
    two merchants who were told different things derive different keys, and the first message
    between them does not open.
    """

    adverts: Mapping[str, Advert]
    transcript: bytes
    ring: Ring
    dimension: int
    floor: int

    @classmethod
    def of(
        cls,
        sealed: Mapping[str, bytes],
        roster: Mapping[str, Ed25519PublicKey],
        *,
        context: bytes,
        ring: Ring,
        dimension: int,
        floor: int = MIN_COHORT,
    ) -> "Session":
        """Check every advert against the roster.

        Args:
            sealed: Signed advert of each participant.
            roster: Identity key of each merchant that may take part.
            context: Digest of what this session is for.
            ring: How numbers are encoded.
            dimension: Of the vectors.
            floor: Fewer may not be summed; :data:`MIN_COHORT` or more.

        Raises:
            ProtocolError: A stranger, a bad advert, a key that comes twice, too few or too many.
        """
        floor = max(floor, MIN_COHORT)
        if not floor <= len(sealed) <= MOST_PARTICIPANTS:
            raise ProtocolError(
                f"secure aggregation of {len(sealed)} merchants: {floor} to "
                f"{MOST_PARTICIPANTS} can take part in one sum"
            )
        if strangers := sorted(sealed.keys() - roster.keys()):
            raise ProtocolError(f"{strangers[0][:64]} is not on the roster")
        adverts = {
            merchant: Advert.read(data, merchant, roster[merchant])
            for merchant, data in sorted(sealed.items())
        }
        keys = [key for a in adverts.values() for key in (a.encryption, a.masking)]
        if len(set(keys)) < len(keys):
            raise ProtocolError("two adverts hold the same key")
        facts = {
            "protocol": "SA-1",
            "context": context.hex(),
            "bits": ring.bits,
            "bound": ring.bound,
            "dimension": dimension,
            "adverts": {merchant: data.decode() for merchant, data in sealed.items()},
        }
        transcript = hashlib.sha256(canonical_json(facts)).digest()
        return cls(adverts, transcript, ring, dimension, floor)

    @property
    def threshold(self) -> int:
        """Of this session's number of participants; nobody can ask for another."""
        return threshold(len(self.adverts))

    def point(self, merchant: str) -> int:
        """Where this merchant's shares are evaluated: 1 for the first by name."""
        return list(self.adverts).index(merchant) + 1

    def check_survivors(self, survivors: set[str], of: set[str]) -> None:
        """Refuse a set whose sum may not be opened.

        Raises:
            ProtocolError: Too few, or somebody whose secrets nobody could recover.
        """
        least = max(self.threshold, self.floor)
        if len(survivors) < least:
            raise ProtocolError(f"a sum of {len(survivors)} merchants: {least} at least")
        if not survivors <= of:
            raise ProtocolError("the sum is said to hold a merchant that shared no secrets")

    def agreement(self, survivors: Collection[str]) -> dict[str, str]:
        """What everybody whose vector is in the sum signs."""
        names = canonical_json(sorted(survivors))
        digest = hashlib.sha256(names).hexdigest()
        return {"transcript": self.transcript.hex(), "survivors_sha256": digest}

    def pair_keys(
        self, merchant: str, masking: X25519PrivateKey, others: set[str]
    ) -> Iterator[tuple[bytes, Sign]]:
        """Key and sign of the masks between one merchant and each of the others.

        The sign is that merchant's: the other one of the pair uses the opposite.
        """
        for other in sorted(others - {merchant}):
            first, second = sorted((merchant, other))
            secret = agree(masking, self.adverts[other].masking_key(), other)
            key = derive(secret, transcript=self.transcript, use=f"pair\0{first}\0{second}")
            yield key, 1 if merchant == first else -1

    def self_key(self, seed: bytes) -> bytes:
        """Key of a merchant's own mask."""
        return derive(seed, transcript=self.transcript, use="self")


def agree(private: X25519PrivateKey, public: X25519PublicKey, merchant: str) -> bytes:
    """The secret that a private key and a merchant's public key agree on.

    Raises:
        ProtocolError: The public key is one of the few with which everybody agrees on zero.
    """
    try:
        return private.exchange(public)
    except ValueError as error:
        raise ProtocolError(f"the key that {merchant} advertised is of low order") from error


def _is_hash_or_point(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{64}", text) is not None


def share_hash(share: bytes, *, transcript: bytes, owner: str, holder: str) -> str:
    """What binds a merchant to a share it gave, and who holds that share to giving no other.

    A share is as good as uniform over 521 bits, so 128 bits of a hash tell nothing of it.
    """
    label = f"handbill/v1/secagg/share\0{owner}\0{holder}\0".encode()
    return hashlib.sha256(label + transcript + share).hexdigest()[:32]


def commitment(seed: bytes) -> str:
    """What binds a merchant to its seed before anybody knows it."""
    return hashlib.sha256(b"handbill/v1/secagg/seed\0" + seed).hexdigest()

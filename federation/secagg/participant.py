"""A merchant's side of a session of secure aggregation."""

import base64
import hashlib
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from handbill.errors import ProtocolError
from handbill.federation.fields import read_object
from handbill.federation.sealed import seal, unseal
from handbill.federation.secagg.masks import Words, add_masks, derive
from handbill.federation.secagg.ring import Ring
from handbill.federation.secagg.session import MIN_COHORT, Session, SessionKeys, agree, share_hash
from handbill.federation.secagg.sharing import SHARE_BYTES, split
from handbill.generator.artifacts import canonical_json

MOST_PROPOSALS: Final = 3  # survivors may drop out while they agree on who survived
_NONCE: Final = bytes(12)  # a key encrypts one message


class Step(IntEnum):
    """Where a participant is; there is no way back."""

    ADVERTISED = 0
    SHARED = 1
    MASKED = 2
    AGREED = 3
    UNMASKED = 4


class BadShareError(ProtocolError):
    """A share of another participant that does not open, or is not the one it promised.

    Attributes:
        complaint: The signed word on it, for the server.
    """

    def __init__(self, giver: str, complaint: bytes) -> None:
        """Name who gave it."""
        super().__init__(
            f"the share from {giver} does not open: it was told of another model, round, recipe or "
            f"cohort, or the share was changed; nothing was sent"
        )
        self.complaint = complaint


class Participant:
    """One merchant in one session. Call the steps in order; what is refused cannot be repeated."""

    def __init__(
        self,
        merchant: str,
        keys: SessionKeys,
        key: Ed25519PrivateKey,
        roster: Mapping[str, Ed25519PublicKey],
        *,
        context: bytes,
        ring: Ring,
        dimension: int,
        burn: Callable[[], None],
        floor: int = MIN_COHORT,
    ) -> None:
        """Enter a session that nothing was sent in yet but the advert.

        Args:
            merchant: Its id.
            keys: What it advertised; for this session alone.
            key: Its identity key.
            roster: Identity keys that it trusts, its own included.
            context: Digest of what this session is for, worked out from what this merchant holds.
            ring: How numbers are encoded.
            dimension: Of the vectors.
            burn: Called before the first agreement leaves: remember durably that the vector may
                now be in a sum, so that it is never masked again. A second sum that holds it
                would give it away by subtraction.
            floor: Fewest merchants in a sum that this one allows.
        """
        self._merchant, self._keys, self._key = merchant, keys, key
        self._roster, self._context = roster, context
        self._ring, self._dimension, self._burn, self._floor = ring, dimension, burn, floor
        self._step = Step.ADVERTISED
        self._session: Session
        self._own: tuple[bytes, bytes]  # its shares of its own seed and masking key
        self._held: dict[str, tuple[bytes, bytes]] = {}  # of others'
        self._agreed: list[set[str]] = []
        self._secrets: dict[str, bytes] = {}  # agreed with each other for encryption

    def share(self, request: bytes) -> bytes:
        """Check who takes part; give everybody a share of the own secrets, encrypted.

        Raises:
            ProtocolError: The adverts are not to be trusted, or hold another one for this merchant.
        """
        self._enter(Step.SHARED)
        sealed = {name: text.encode() for name, text in _texts(request, "adverts").items()}
        if sealed.get(self._merchant) != self._keys.advertise(self._merchant, self._key):
            raise ProtocolError("the session does not hold what this merchant advertised")
        session = self._session = Session.of(
            sealed,
            self._roster,
            context=self._context,
            ring=self._ring,
            dimension=self._dimension,
            floor=self._floor,
        )
        seeds, maskings = (
            split(secret, points=len(session.adverts), threshold=session.threshold)
            for secret in (self._keys.seed, self._keys.masking.private_bytes_raw())
        )
        ciphertexts, hashes = {}, {}
        for other, seed, masking in zip(session.adverts, seeds, maskings, strict=True):
            hashes[other] = self._hashes(self._merchant, other, (seed, masking))
            if other == self._merchant:
                self._own = seed, masking
                continue
            box = self._box(self._merchant, other)
            box_text = base64.b64encode(box.encrypt(_NONCE, seed + masking, None))
            ciphertexts[other] = box_text.decode()
        return canonical_json({"shares": ciphertexts, "hashes": hashes})

    def mask(self, request: bytes, vector: Words) -> bytes:
        """Open the shares of the others, and hide the vector under masks that cancel in the sum.

        Args:
            request: The shares for this merchant, by who gave them.
            vector: Encoded, shape (dimension,); masked in place, so that nothing else is left of it.

        Raises:
            BadShareError: A share does not open: who gave it was told of another model, round,
                recipe or cohort, or somebody changed it; or it is not what was promised, and could
                not open a sum. Nothing of the vector was sent.
            ProtocolError: Too few shares, or of a stranger.
        """
        self._enter(Step.MASKED)
        session = self._session
        shares, hashes = _texts(request, "shares"), _texts(request, "hashes")
        if shares.keys() - session.adverts.keys() or self._merchant in shares:
            raise ProtocolError("shares of a merchant that did not advertise")
        if len(shares) + 1 < session.threshold:
            raise ProtocolError(f"shares of {len(shares) + 1} merchants: too few to unmask a sum")
        for other, text in shares.items():
            box = self._box(other, self._merchant)
            try:
                opened = box.decrypt(_NONCE, base64.b64decode(text, validate=True), None)
            except (InvalidTag, ValueError) as error:
                raise self._bad_share(other) from error
            pair = opened[:SHARE_BYTES], opened[SHARE_BYTES:]
            if self._hashes(other, self._merchant, pair) != hashes.get(other):
                raise self._bad_share(other)
            self._held[other] = pair
        self._held[self._merchant] = self._own
        pairs = session.pair_keys(self._merchant, self._keys.masking, set(self._held))
        add_masks(vector, [(session.self_key(self._keys.seed), 1), *pairs])
        self._ring.reduce(vector)
        raw = self._ring.to_bytes(vector)
        body = {"transcript": session.transcript.hex(), "sha256": hashlib.sha256(raw).hexdigest()}
        head = seal("secagg/masked", body, self._key)
        return b"".join((len(head).to_bytes(4, "big"), head, raw))

    def agree(self, request: bytes) -> bytes:
        """Sign the set of merchants whose vectors are in the sum, this one's among them.

        A smaller set may be proposed twice more, should somebody be lost meanwhile.

        Raises:
            ProtocolError: Too few, without this merchant, or not a smaller set than before.
        """
        if self._step is not Step.AGREED:
            self._enter(Step.AGREED)
        survivors = _names(request, "survivors")
        self._session.check_survivors(survivors, of=set(self._held))
        if self._merchant not in survivors:
            raise ProtocolError("the sum is said not to hold this merchant's vector")
        if len(self._agreed) >= MOST_PROPOSALS or not all(survivors < s for s in self._agreed):
            raise ProtocolError("another set of survivors was agreed to before")
        if not self._agreed:
            self._burn()
        self._agreed.append(survivors)
        return seal("secagg/survivors", self._session.agreement(survivors), self._key)

    def unmask(self, request: bytes) -> bytes:
        """Give the shares that open the one sum everybody in it has signed for. Once.

        For a merchant in the sum, a share of its seed; for one that was lost, a share of its
        masking key; never both.

        Raises:
            ProtocolError: A signature is missing or is for another set.
        """
        self._enter(Step.UNMASKED)
        agreements = _texts(request, "agreements")
        survivors = set(agreements)
        if survivors not in self._agreed:
            raise ProtocolError("this merchant did not sign for this set of survivors")
        expected = self._session.agreement(survivors)
        for other, text in agreements.items():
            if unseal(text.encode(), "secagg/survivors", self._roster[other]) != expected:
                raise ProtocolError(f"{other} signed for another set of survivors or session")
        lost = self._held.keys() - survivors
        answer = {
            "seeds": {name: self._held[name][0].hex() for name in sorted(survivors)},
            "maskings": {name: self._held[name][1].hex() for name in sorted(lost)},
        }
        self._held.clear()
        return canonical_json(answer)

    def _enter(self, step: Step) -> None:
        if step != self._step + 1:
            raise ProtocolError(
                f"secure aggregation: {step.name.lower()} asked for after {self._step.name.lower()}"
            )
        self._step = step

    def _hashes(self, owner: str, holder: str, shares: tuple[bytes, bytes]) -> str:
        """What binds both sides to the shares of a seed and of a masking key."""
        transcript = self._session.transcript
        return "".join(
            share_hash(share, transcript=transcript, owner=owner, holder=holder) for share in shares
        )

    def _bad_share(self, giver: str) -> BadShareError:
        body = {"transcript": self._session.transcript.hex(), "giver": giver}
        return BadShareError(giver, seal("secagg/complaint", body, self._key))

    def _box(self, sender: str, receiver: str) -> AESGCM:
        """The cipher for one direction between this merchant and another of the session."""
        other = receiver if sender == self._merchant else sender
        if other not in self._secrets:
            public = self._session.adverts[other].encryption_key()
            self._secrets[other] = agree(self._keys.encryption, public, other)
        use = f"share\0{sender}\0{receiver}"
        key = derive(self._secrets[other], transcript=self._session.transcript, use=use)
        return AESGCM(key)


def _texts(data: bytes, name: str) -> dict[str, str]:
    """A table of texts from an untrusted party."""
    table = read_object(data).get(name)
    if not isinstance(table, dict) or not all(isinstance(v, str) for v in table.values()):
        raise ProtocolError(f"secure aggregation: no sound {name} in the request")
    return table


def _names(data: bytes, name: str) -> set[str]:
    """A list of names from an untrusted party, none of them twice."""
    listed = read_object(data).get(name)
    if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
        raise ProtocolError(f"secure aggregation: no sound {name} in the request")
    if len(set(listed)) < len(listed):
        raise ProtocolError(f"secure aggregation: {name} names a merchant twice")
    return set(listed)

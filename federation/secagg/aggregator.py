"""The server's side of a session of secure aggregation. It is trusted with nothing but the sum."""

import hashlib
import io
import re
from collections.abc import Collection, Mapping
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
from handbill.federation.secagg.session import Advert, Session, commitment, share_hash
from handbill.federation.secagg.sharing import SECRET_BYTES, Interpolation
from handbill.generator.artifacts import canonical_json

_CIPHERTEXT: Final = re.compile(r"[A-Za-z0-9+/]{198}==")  # two shares and a tag in Base64
_HASHES: Final = re.compile(r"[0-9a-f]{64}")
_SHARE: Final = re.compile(r"[0-9a-f]{132}")


class CheatedError(RoundError):
    """A sum stays closed, since some shared something else than the secrets they advertised.

    It is certain: every share used is the one its owner gave out, by the owner's own hash.

    Attributes:
        merchants: Who did.
    """

    def __init__(self, merchants: tuple[str, ...]) -> None:
        """Name them."""
        names = ", ".join(merchants)
        super().__init__(f"{names} shared something else than its secret; the sum stays closed")
        self.merchants = merchants


class RefusedShareError(RoundError):
    """A participant says that another's share for it does not open; one of the two lies."""


@dataclass(frozen=True, slots=True)
class SecureSum:
    """What a session opened.

    Attributes:
        total: The sum, shape (d,), modulo the ring.
        survivors: Whose vectors are in it.
    """

    total: Words
    survivors: tuple[str, ...]


class Aggregator:
    """One session. Each ``*_request`` closes a phase; what comes later is refused.

    Whatever an honest participant would refuse is refused here first, when it comes and from whom
    it comes (a :class:`~handbill.errors.ProtocolError` blames that merchant alone), so that nobody
    spoils a session for the others.

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
        self._hashes: dict[str, dict[str, str]] = {}  # giver -> receiver -> of both shares
        self._accusers: dict[str, set[str]] = {}  # by whose shares do not open for them
        self._total = np.zeros(dimension, np.uint32)
        self._masked: dict[str, tuple[int, int]] = {}  # place in the spool and length
        self._survivors: set[str] = set()
        self._proposals = 0
        self._agreements: dict[str, str] = {}
        self._unmasked: dict[str, dict[str, dict[str, str]]] = {}

    def advertised(self, merchant: str, advert: bytes) -> None:
        """Take a merchant's signed advert.

        Raises:
            ProtocolError: It is not to be trusted, or holds a key that another advertised before.
        """
        if merchant not in self._roster:
            raise ProtocolError(f"{merchant} is not on the roster")
        read = Advert.read(advert, merchant, self._roster[merchant])
        keys = {read.encryption, read.masking}
        if keys & self._keys:  # for which everybody would refuse the session
            raise ProtocolError(f"{merchant} advertised a key that another had advertised before")
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
        fields, everybody = read_object(answer), self._session.adverts.keys()
        shares = _table(fields, "shares", everybody - {merchant}, _CIPHERTEXT)
        self._hashes[merchant] = _table(fields, "hashes", everybody, _HASHES)
        self._shares[merchant] = shares

    def mask_request(self, merchant: str) -> bytes:
        """What one of those who shared is asked next: the others' shares for it.

        Raises:
            RoundError: Too few shared.
        """
        if len(self._shares) < self._session.threshold:
            raise RoundError(
                f"{len(self._shares)} merchants shared their secrets, {self._session.threshold} "
                f"needed: too few to unmask a sum"
            )
        givers = sorted(self._shares.keys() - {merchant})
        return canonical_json(
            {
                "shares": {giver: self._shares[giver][merchant] for giver in givers},
                "hashes": {giver: self._hashes[giver][merchant] for giver in givers},
            }
        )

    def refused(self, merchant: str, complaint: bytes) -> None:
        """Take a merchant's word that another's share for it does not open: it sends no vector.

        Raises:
            RefusedShareError: Always, else; who complains is left out, and not to blame.
        """
        body = unseal(complaint, "secagg/complaint", self._roster[merchant])
        giver = str(body.get("giver"))
        if body != {"transcript": self._session.transcript.hex(), "giver": giver} or (
            giver not in self._shares.keys() - {merchant}
        ):
            raise ProtocolError("complaint of another session, or about nobody who shared")
        self._accusers.setdefault(giver, set()).add(merchant)
        raise RefusedShareError(f"the share from {giver} does not open, it says")

    def accused(self) -> list[str]:
        """Whose shares do not open for so many that one of these at least is honest.

        A session can do without as many merchants as may lie, and goes on; more cannot all lie.
        """
        most = len(self._session.adverts) - self._session.threshold
        return sorted(giver for giver, by in self._accusers.items() if len(by) > most)

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
        fields, answered = read_object(answer), {}
        for number, (kind, owners) in enumerate(
            (("seeds", self._survivors), ("maskings", self._lost()))
        ):
            shares = answered[kind] = _table(fields, kind, owners, _SHARE)
            for owner, share in shares.items():
                # It checked, before it masked, that this is what its share from that one hashes to.
                promised = self._hashes[owner][merchant][32 * number : 32 * (number + 1)]
                if promised != share_hash(
                    bytes.fromhex(share),
                    transcript=self._session.transcript,
                    owner=owner,
                    holder=merchant,
                ):
                    raise ProtocolError(f"not the share that {owner} gave it")
        self._unmasked[merchant] = answered

    def finish(self) -> SecureSum:
        """Recover the secrets, take the masks away.

        Raises:
            CheatedError: Some shared something else than their secrets.
            RoundError: Too few shares.
        """
        session = self._session
        if len(self._unmasked) < session.threshold:
            raise RoundError(
                f"{len(self._unmasked)} merchants helped to unmask the sum, "
                f"{session.threshold} needed"
            )
        enough = sorted(self._unmasked)[: session.threshold]
        weights = Interpolation(tuple(session.point(holder) for holder in enough))
        masks: list[tuple[bytes, Sign]] = []
        cheats = []
        for kind, owners in (("seeds", self._survivors), ("maskings", self._lost())):
            for owner in sorted(owners):
                shares = {
                    session.point(holder): bytes.fromhex(self._unmasked[holder][kind][owner])
                    for holder in enough
                }
                try:
                    secret = weights.value(shares).to_bytes(SECRET_BYTES, "big")
                    masks += self._masks(owner, kind, secret)
                except (OverflowError, ProtocolError):
                    cheats.append(owner)
        if cheats:
            raise CheatedError(tuple(cheats))
        add_masks(self._total, masks)
        self._ring.reduce(self._total)
        return SecureSum(self._total, tuple(sorted(self._survivors)))

    def _masks(self, owner: str, kind: str, secret: bytes) -> list[tuple[bytes, Sign]]:
        """What a merchant's recovered secret takes out of the sum.

        Raises:
            ProtocolError: It is not the secret that was advertised.
        """
        session = self._session
        advert = session.adverts[owner]
        if kind == "seeds":
            if commitment(secret) != advert.commitment:
                raise ProtocolError("not the seed")
            return [(session.self_key(secret), -1)]
        key = X25519PrivateKey.from_private_bytes(secret)
        if key.public_key().public_bytes_raw().hex() != advert.masking:
            raise ProtocolError("not the masking key")
        # The survivors' halves of these masks are in the sum: the lost one's cancel them.
        return list(session.pair_keys(owner, key, self._survivors))

    def _lost(self) -> set[str]:
        """Who shared, and is not in the sum."""
        return self._shares.keys() - self._survivors


def _table(
    fields: Mapping[str, object], name: str, keys: Collection[str], form: re.Pattern[str]
) -> dict[str, str]:
    """A table that a participant sent, with an entry of a form for each of ``keys``."""
    table = fields.get(name)
    if not isinstance(table, dict) or table.keys() != set(keys):
        raise ProtocolError(f"{name}: not one for each participant that needs one")
    if not all(isinstance(text, str) and form.fullmatch(text) for text in table.values()):
        raise ProtocolError(f"{name}: one is malformed")
    return table

"""What the server and a merchant say to each other, signed end to end.

A message is a header (canonical JSON), the tensors it speaks of, and the sender's Ed25519
signature over the header, which holds the digest of the tensors. Flower's own node
authentication signs only a time stamp; this signature is what ties an update to a merchant, a
run, a round and an attempt.

Wire format: 4 bytes length of header, header, 64 bytes signature, safetensors. The header ends in
as many spaces as let the tensors begin where a processor likes to read them.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, Literal, TypeVar, cast

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from handbill.errors import InputError, ProtocolError
from handbill.federation.fields import read_as, read_object
from handbill.federation.payload import payload_bytes, read_tensors, write_tensors
from handbill.federation.secagg.ring import Ring
from handbill.generator.adapters import AdapterSpec, Tensors
from handbill.generator.artifacts import canonical_json
from handbill.generator.interest_spec import InterestSpec
from handbill.generator.model_specs import ModelSpec

# "deliver" hands out what a run made, "ping" nothing; neither trains.
Stage = Literal["warmup", "global", "personal", "deliver", "ping"]
PaidStage = Literal["global", "personal"]
# "train" is a whole round for whoever may see a single update; the others are one securely summed.
Phase = Literal["train", "advertise", "share", "mask", "agree", "unmask"]
Compression = Literal["none", "int8"]

MESSAGE_LABEL: Final = b"handbill/v1/message\0"
MAX_MESSAGE_BYTES: Final = 256 * 1024 * 1024
_MAX_HEADER_BYTES: Final = 256 * 1024
_SIGNATURE_BYTES: Final = 64
_ALIGNMENT: Final = 64
# What everybody who reads a DP statement relies on; its other fields are kept as they came.
_WORDS: Final = ("merchant", "unit", "adjacency")
_NUMBERS: Final = {"epsilon": float, "delta": float, "steps": int}
_MOST: Final = 1e9
_MOST_COUNT: Final = 1_000_000  # of steps, rows or tokens in a recipe: more cannot be meant


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How merchants train: public facts, the same for all of them.

    How much noise is added is not here: each merchant works it out from its own policy and the
    number of steps planned here (``rounds * local_steps + personal_steps``).

    Attributes:
        warmup_rounds: Rounds on the merchants' catalogues before the private ones: product
            descriptions, in which there is no shopper, and so no noise.
        warmup_rows: Descriptions used in one of them.
        rounds: Private rounds planned for the global adapter.
        local_steps: Private steps a merchant takes in one round.
        personal_steps: Private steps for the merchant's own adapter, after the last round.
        expected_users: Shoppers sampled in a step, on average.
        rows_per_user: At most so many rows of one shopper are used in a step.
        clipping_norm: L2 bound of one shopper's gradient.
        learning_rate: Of the local optimiser in a round (SGD; the server's optimiser adapts).
        personal_learning_rate: Of Adam in the personal stage.
        personal_optimizer: ``adam``, or ``dp-adam``, which takes the noise out of Adam's second moment.
        clipping_quantile: Let each merchant's clipping norm follow this quantile of its shoppers'
            gradient norms, from ``clipping_norm`` on, within the same noise; 0 keeps it fixed.
    """

    warmup_rounds: int = 0
    warmup_rows: int = 32
    rounds: int = 5
    local_steps: int = 1
    personal_steps: int = 2
    expected_users: int = 24
    rows_per_user: int = 1
    clipping_norm: float = 0.5
    learning_rate: float = 1.0
    personal_learning_rate: float = 2e-2
    personal_optimizer: str = "adam"
    clipping_quantile: float = 0.0
    max_prompt_tokens: int = 96
    max_copy_tokens: int = 64
    batch_rows: int = 8

    def __post_init__(self) -> None:
        for name in (
            "warmup_rows",
            "rounds",
            "local_steps",
            "expected_users",
            "rows_per_user",
            "batch_rows",
        ):
            if getattr(self, name) < 1:
                raise InputError(f"recipe: {name}={getattr(self, name)} must be at least 1")
        for name in ("personal_steps", "warmup_rounds"):
            if getattr(self, name) < 0:
                raise InputError(f"recipe: {name}={getattr(self, name)} is negative")
        for item in fields(self):
            value = getattr(self, item.name)
            if type(value) is int and value > _MOST_COUNT:
                raise InputError(f"recipe: {item.name}={value} is over {_MOST_COUNT}")
        if self.max_copy_tokens < 2:
            raise InputError(
                f"recipe: max_copy_tokens={self.max_copy_tokens} must be at least 2: one token of "
                f"copy and its end"
            )
        for name in ("clipping_norm", "learning_rate", "personal_learning_rate"):
            if not 0 < getattr(self, name) < 1e3:
                raise InputError(f"recipe: {name}={getattr(self, name)} not in (0, 1000)")
        if self.personal_optimizer not in {"adam", "dp-adam"}:
            raise InputError(
                f"recipe: personal_optimizer={self.personal_optimizer!r}: adam, dp-adam"
            )
        if not 0 <= self.clipping_quantile < 1:
            raise InputError(f"recipe: clipping_quantile={self.clipping_quantile} not in [0, 1)")

    @property
    def private_steps(self) -> int:
        """Noisy steps in the whole run, which the merchant's noise is calibrated for."""
        return self.rounds * self.local_steps + self.personal_steps

    def steps_in(self, stage: PaidStage) -> int:
        """Noisy steps of one round of a stage."""
        return self.personal_steps if stage == "personal" else self.local_steps

    def steps_left(self, stage: PaidStage, number: int) -> int:
        """Noisy steps from a round on to the planned end of the run, that round's included."""
        if stage == "personal":
            return self.personal_steps
        return max(1, self.rounds + 1 - number) * self.local_steps + self.personal_steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What the server committed last of a merchant: the head its ledger had after which round."""

    run: str
    round: int
    stage: PaidStage
    head: str

    def __post_init__(self) -> None:
        if not _is_hash(self.head):
            raise ProtocolError("receipt: head is not a SHA-256 in hex")


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditHead:
    """The last entry of the operator's audit chain at one moment.

    A merchant that keeps it can tell later whether history was cut off or rewritten.
    """

    seq: int
    hash: str

    def __post_init__(self) -> None:
        if not _is_hash(self.hash):
            raise ProtocolError("audit head: not a SHA-256 in hex")


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """Server to merchant: take part in this round, from these weights.

    Attributes:
        receipt: The merchant's last ledger head that the server committed, None before the first:
            a merchant whose ledger does not hold it has gone back to an older copy.
        audit: Where the operator's audit chain stands, None before its first entry.
        expires_at: Unix time after which it is not followed. Without one (0) it is a plan that was
            not sent: no merchant follows it.
        phase: What is asked for now, where the round takes several messages.
        ring: How updates are encoded to be summed securely; None where they are not.
        compression: How an update that is not summed securely is packed.
    """

    merchant: str
    run: str
    round: int
    attempt: int
    stage: Stage
    parent: str
    base_digest: str
    spec: ModelSpec
    recipe: Recipe
    receipt: Receipt | None = None
    audit: AuditHead | None = None
    expires_at: float = 0.0
    phase: Phase = "train"
    ring: Ring | None = None
    compression: Compression = "none"

    def __post_init__(self) -> None:
        if (self.phase == "train") != (self.ring is None):
            raise ProtocolError("instruction: a secure sum needs a ring, and only such a sum")
        if self.ring and self.compressed:
            raise ProtocolError("instruction: such a compression cannot be followed here")
        if not 0 <= self.expires_at < 1e12:
            raise ProtocolError("instruction: expires_at is not a time")

    @property
    def compressed(self) -> bool:
        """Whether the update is to be packed in eight bits a number."""
        return self.compression == "int8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Merchant to server: the update (local minus global weights), and what it cost.

    Attributes:
        privacy: The merchant's DP statement after this round; public facts only.
        ledger_head: Hash of the last row of the merchant's ledger, which the server receipts.
        phase: What this answers.
        prompts: Digest of what the prompts of the merchant's own adapter were made of, where it has
            scenarios of its own (``Scenarios.prompts``); what they say stays with the merchant.
    """

    merchant: str
    run: str
    round: int
    attempt: int
    stage: Stage
    parent: str
    ledger_head: str
    privacy: dict[str, Any] = field(default_factory=dict)
    phase: Phase = "train"
    prompts: str = ""

    def __post_init__(self) -> None:
        if not _is_hash(self.ledger_head):
            raise ProtocolError("report: ledger_head is not a SHA-256 in hex")
        own = r"(sha256:[0-9a-f]{64})?" if self.stage == "personal" else ""
        if not re.fullmatch(own, self.prompts):
            raise ProtocolError(
                "report: prompts is not a digest, or not of the merchant's own adapter"
            )
        trained = self.phase in {"train", "share"} and self.stage not in {
            "deliver",
            "ping",
            "warmup",
        }
        if trained or self.privacy:
            _check_statement(self.privacy, self.merchant)


@dataclass(frozen=True, slots=True)
class Signed:
    """A message as it travels: signed header, signature, encoded tensors."""

    header: bytes
    signature: bytes
    payload: bytes | memoryview

    @property
    def digest(self) -> str:
        """SHA-256 of the header, which holds the digest of the tensors: equal for equal messages."""
        return hashlib.sha256(self.header).hexdigest()

    def to_bytes(self) -> bytes:
        """The wire format."""
        length = len(self.header).to_bytes(4, "big")
        return b"".join((length, self.header, self.signature, self.payload))

    @classmethod
    def from_bytes(cls, data: bytes, *, most: int | None = None) -> "Signed":
        """Cut a message into its parts, the tensors uncopied; nothing in it is trusted yet.

        Args:
            data: As it came.
            most: How long it may be, as far as that is known (:func:`most_bytes`).

        Raises:
            ProtocolError: It is too long, or too short for its header.
        """
        most = MAX_MESSAGE_BYTES if most is None else min(most, MAX_MESSAGE_BYTES)
        if len(data) > most:
            raise ProtocolError(f"message of {len(data)} bytes is over {most}, and was not read")
        length = int.from_bytes(data[:4], "big")
        start = 4 + length + _SIGNATURE_BYTES
        if length > _MAX_HEADER_BYTES or len(data) < start:
            raise ProtocolError("message is cut short or its header is too long")
        return cls(data[4 : 4 + length], data[4 + length : start], memoryview(data)[start:])


def most_bytes(room: Mapping[str, int]) -> int:
    """The length of the longest message with such tensors: name to size in bytes."""
    return 4 + _MAX_HEADER_BYTES + _SIGNATURE_BYTES + payload_bytes(room)


M = TypeVar("M", Instruction, Report)


def attached(name: str, data: bytes) -> Tensors:
    """Bytes as a tensor, to travel beside others."""
    return {name: cast("Any", np.frombuffer(data, np.uint8))}


def detach(tensors: Tensors, name: str) -> bytes:
    """Take bytes out from among the tensors again; empty where there are none."""
    array = tensors.pop(name, None)
    return b"" if array is None else array.tobytes()


def sign(message: Instruction | Report, tensors: Tensors, key: Ed25519PrivateKey) -> Signed:
    """Encode and sign a message with its tensors."""
    payload = write_tensors(tensors)
    body = asdict(message)
    if not body.get("prompts"):
        body.pop("prompts", None)  # as it was before there were any
    header = canonical_json(
        {
            "type": type(message).__name__,
            "body": body,
            "payload_sha256": hashlib.sha256(payload).hexdigest(),
        }
    )
    header += b" " * (-(4 + len(header) + _SIGNATURE_BYTES) % _ALIGNMENT)
    return Signed(header, key.sign(MESSAGE_LABEL + header), payload)


def open_signed(signed: Signed, key: Ed25519PublicKey, kind: type[M]) -> tuple[M, Tensors]:
    """Check a message's signature and payload, then read it; its tensors are read-only views of it.

    Raises:
        ProtocolError: Another sender, another kind of message, changed on the way, or malformed.
    """
    try:
        key.verify(signed.signature, MESSAGE_LABEL + signed.header)
    except InvalidSignature as error:
        raise ProtocolError("message is not signed by whom it should be") from error
    header = read_object(signed.header)
    if hashlib.sha256(signed.payload).hexdigest() != header.get("payload_sha256"):
        raise ProtocolError("message's tensors are not those that were signed")
    if header.get("type") != kind.__name__:
        raise ProtocolError(f"expected {kind.__name__}, got {str(header.get('type'))[:40]!r}")
    readers: dict[str, Any] = {"spec": _spec} if kind is Instruction else {}
    return read_as(kind, header.get("body"), **readers), read_tensors(signed.payload)


def _check_statement(privacy: dict[str, Any], merchant: str) -> None:
    """Refuse a DP statement that could not be shown, signed and stored as it is."""
    for name in _WORDS:
        if not re.fullmatch(r"[a-z0-9-]{1,64}", privacy[name]):
            raise ProtocolError(f"report: privacy statement without a sound {name}")
    for name, kind in _NUMBERS.items():
        if type(privacy[name]) is not kind or not 0 <= privacy[name] < _MOST:
            raise ProtocolError(f"report: privacy statement without a sound {name}")
    if privacy["merchant"] != merchant:
        raise ProtocolError("report: privacy statement of another merchant")


def _is_hash(value: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{64}", value) is not None


def _spec(fields: Any) -> ModelSpec:
    interest = isinstance(fields, dict) and fields.get("kind") == "interest"
    return read_as(InterestSpec, fields) if interest else read_as(AdapterSpec, fields)

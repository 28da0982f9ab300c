"""What a merchant's client must remember across a crash: replies sent, and the last round seen.

A retry must send the same update again: drawing new noise for the same round would cost budget
twice. So an update is written here, durably, before it is sent, and a new attempt at the same
round from the same weights gets the same tensors.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from safetensors import safe_open
from safetensors.numpy import load_file, save, save_file

from handbill.errors import ProtocolError
from handbill.federation.compression import compress, expand, shapes_of
from handbill.federation.messages import AuditHead, Instruction, Receipt
from handbill.generator.adapters import Tensors
from handbill.generator.artifacts import canonical_json, sync_to_disk, write_durably
from handbill.privacy.faults import faultpoint

_KEEP: Final = 4  # updates; a round is retried at once or never
_HEADS: Final = 16  # of the operator's audit chain; one comes with a round
_ORDER: Final = {"warmup": -1, "global": 0, "personal": 1, "deliver": 2}  # of a run's stages


class Journal:
    """Durable memory of one merchant's client, below ``folder``."""

    def __init__(self, folder: Path) -> None:
        """Use ``folder``, made if it is not there."""
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for mark in folder.glob("*.burnt"):  # an older version kept what it had burnt
            mark.with_suffix(".safetensors").unlink(missing_ok=True)
            mark.unlink()

    def admit(self, asked: Instruction, digest: str) -> None:
        """Refuse an instruction older than one already followed (a replay), or of other terms.

        The last one may come again, to the byte: whoever was to carry the answer may have died.
        That costs nothing, since its update comes from :meth:`recall`, or else the ledger refuses
        to pay for the same attempt twice.

        A run keeps the recipe, the adapter's form and the base model it began with: noise is
        calibrated for a run as a whole, and what a round gave can be told from a later one whose
        recipe was chosen for that.

        Args:
            asked: What came.
            digest: Of the whole message (``Signed.digest``).

        Raises:
            ProtocolError: A later round of this run was seen before, another message for this
                attempt of it, or the run began with other terms.
        """
        path = self._folder / "last.json"
        last: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        place = [_ORDER[asked.stage], asked.round, asked.attempt]
        seen, terms = last.get(asked.run), _terms(asked)
        if seen == [*place, digest, terms]:
            return
        if seen is not None and place <= seen[: len(place)]:
            raise ProtocolError(
                f"{asked.stage} round {asked.round}, attempt {asked.attempt} was asked for before"
            )
        if seen is not None and seen[4:] not in ([], [terms]):  # an older version wrote less
            raise ProtocolError(
                "the run goes on with another recipe, adapter or base model than it began with; "
                "nothing was spent. Ask the operator: a change needs a new run"
            )
        last[asked.run] = [*place, digest, terms]
        write_durably(path, json.dumps(last).encode())

    def recall(self, asked: Instruction) -> Tensors | None:
        """The update already made for this round from these weights, if it may be sent again."""
        path = self._path(asked)
        return dict(load_file(path)) if path.is_file() else None

    def learnt_with(self, asked: Instruction) -> str:
        """The prompts that the update kept for this round was learnt with, see :meth:`keep`."""
        return _metadata(self._path(asked)).get("prompts", "")

    def burn(self, asked: Instruction) -> None:
        """Forget this round's update for good: it may be in a sum now.

        Two sums that hold it, over different merchants, would give it away by subtraction, and so
        would anything else that is made of it.
        """
        faultpoint("journal.burn.before")
        self._path(asked).unlink(missing_ok=True)
        sync_to_disk(self._folder)
        faultpoint("journal.burn.after")

    def keep(self, asked: Instruction, update: Tensors, *, prompts: str = "") -> None:
        """Write an update durably; older ones are dropped.

        Args:
            asked: What it answers. Which prompts it was learnt with is no part of its place: it is
                paid for, and what was paid for is sent again, whatever the shop's scenarios are by then.
            update: Local minus global weights.
            prompts: What it was learnt with (``Scenarios.prompts``).
        """
        path = self._path(asked)
        temporary = path.with_suffix(".new")
        save_file(update, temporary, metadata={"prompts": prompts})
        sync_to_disk(temporary)
        faultpoint("journal.keep.before_rename")
        temporary.rename(path)
        sync_to_disk(self._folder)
        kept = self._folder.glob("*.safetensors")
        for old in sorted(kept, key=lambda file: file.stat().st_mtime_ns)[:-_KEEP]:
            old.unlink()

    def round_off(self, run: str, update: Tensors) -> Tensors:
        """Round an update to what eight bits can say, as it will be sent.

        What earlier rounds' rounding took off is added first, and what this one takes off is kept
        for the next (:mod:`handbill.federation.compression`).
        """
        path = self._folder / "rounding"
        if path.is_file() and _metadata(path) == {"run": run}:
            owed = load_file(path)
            update = {name: value + owed[name] for name, value in update.items()}
        sent = expand(compress(update), shapes_of(update))
        left = {name: update[name] - sent[name] for name in update}
        write_durably(path, save(left, metadata={"run": run}))
        return sent

    def keep_head(self, head: str) -> None:
        """Remember the ledger's last row: an older ledger will not be taken for the newest."""
        write_durably(self._folder / "ledger-head", head.encode())

    def head(self) -> str:
        """The ledger's last row as of now; empty before the first."""
        path = self._folder / "ledger-head"
        return path.read_text() if path.is_file() else ""

    def keep_receipt(self, receipt: Receipt) -> None:
        """Remember what the server last committed of this ledger."""
        if receipt != self.receipt():
            write_durably(self._folder / "receipt.json", json.dumps(asdict(receipt)).encode())

    def receipt(self) -> Receipt | None:
        """What the server last committed of this ledger, None before the first round."""
        path = self._folder / "receipt.json"
        return Receipt(**json.loads(path.read_text())) if path.is_file() else None

    def keep_audit_head(self, head: AuditHead) -> None:
        """Remember where the operator's audit chain stands.

        A message may have been under way while another came: a head that was seen before is taken
        for that. What is not beyond the newest and was never seen cannot be told from a chain that
        was cut back.

        Raises:
            ProtocolError: The chain stood further, or held another entry there, when it was last
                seen.
        """
        path, seen = self._folder / "audit-head.json", self._audit_heads()
        if head in seen:
            return
        if seen and head.seq <= seen[0].seq:
            raise ProtocolError(
                f"the operator's audit chain has changed behind us: entry {seen[0].seq} was "
                f"{seen[0].hash[:16]}, now it stands at {head.seq}, {head.hash[:16]}. Ask the "
                f"operator; if a backup was brought back, remove the shop's audit-head.json",
                path=path,
            )
        before = [asdict(one) for one in seen[: _HEADS - 1]]
        write_durably(path, json.dumps({**asdict(head), "before": before}).encode())

    def audit_head(self) -> AuditHead | None:
        """Where the operator's audit chain stood when it was last seen."""
        return next(iter(self._audit_heads()), None)

    def _audit_heads(self) -> list[AuditHead]:
        """The heads that were seen last, the newest first."""
        path = self._folder / "audit-head.json"
        newest: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        before = newest.pop("before", [])
        return [AuditHead(**one) for one in (newest, *before) if one]

    def keep_clipping_norm(self, run: str, norm: float) -> None:
        """Remember where a run's adaptive clipping norm stands."""
        write_durably(
            self._folder / "clipping.json", json.dumps({"run": run, "norm": norm}).encode()
        )

    def clipping_norm(self, run: str) -> float | None:
        """Where this run's adaptive clipping norm stands, None if it has not moved."""
        path = self._folder / "clipping.json"
        kept: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        return float(kept["norm"]) if kept.get("run") == run else None

    def _path(self, asked: Instruction) -> Path:
        slot = f"{asked.run}\0{asked.round}\0{asked.stage}\0{asked.parent}"
        return self._folder / f"{hashlib.sha256(slot.encode()).hexdigest()[:32]}.safetensors"


def _terms(asked: Instruction) -> str:
    """Digest of what must not change within a run."""
    terms = {
        "base": asked.base_digest,
        "spec": asked.spec.to_dict(),
        "recipe": asdict(asked.recipe),
    }
    return hashlib.sha256(canonical_json(terms)).hexdigest()


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="numpy") as file:
        return file.metadata() or {}

"""Where a DP statement is read from: a shop's own ledger, or the manifest of a trained model."""

import json
from dataclasses import dataclass
from pathlib import Path

from handbill.clients.journal import Journal
from handbill.clients.merchant import LEDGER_FILE, Policy
from handbill.errors import ArtifactError, InputError, MissingError
from handbill.generator.artifacts import MANIFEST_FILE, Manifest, load_public_key, verify
from handbill.privacy.ledger import Ledger
from handbill.privacy.recompute import recompute
from handbill.privacy.statement import DPStatement, dp_statement
from handbill.privacy.statement_page import Subject

_MOST_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Statements, and what they were read from: (what, value), for people."""

    subjects: tuple[Subject, ...]
    facts: tuple[tuple[str, str], ...]


def from_ledger(home: Path) -> Source:
    """State what a merchant's ledger holds now, also while a trainer runs.

    Raises:
        MissingError: No round was trained yet, so there is nothing to state.
        LedgerError: The ledger is damaged, or older than what was given out.
    """
    policy = Policy.load(home)
    recipe = home / "adapters" / "run.json"
    if not (home / LEDGER_FILE).is_file() or not recipe.is_file():
        raise MissingError(
            f"{home}: no private round was trained yet, so there is nothing to state; "
            f"see `handbill client ledger`"
        )
    head = Journal(home / "journal").head()
    with Ledger(
        home / LEDGER_FILE,
        epsilon_limit=policy.epsilon_limit,
        delta=policy.delta,
        known_head="" if head == policy.lost_ledger_head else head,
        read_only=True,
    ) as ledger:
        rows, facts = ledger.verify(), ledger.statement()
    statement = dp_statement(
        facts.events,
        delta=policy.delta,
        rounds=len({row.slot[:3] for row in rows if row.kind == "reserve"}),
        clipping_norm=json.loads(recipe.read_text())["recipe"]["clipping_norm"],
    )
    subject = Subject(
        merchant=home.name,
        statement=statement,
        recomputed=recompute(statement),
        limit=policy.epsilon_limit,
        spending=facts.spending,
    )
    about = (
        ("source", "the shop's own privacy ledger, every row of it checked"),
        ("shoppers to train on", f"{policy.users:,}, as the shop's policy makes it known"),
        ("rows of the ledger", str(len(rows))),
        ("first and last payment", f"{facts.first} and {facts.last}"),
        ("last link of its chain", facts.head),
    )
    return Source(subjects=(subject,), facts=about)


def from_manifest(path: Path, *, merchant: str = "", key: Path | None = None) -> Source:
    """State what a manifest, or the artifact folder that holds one, says of its merchants.

    Args:
        path: The manifest, or its folder.
        merchant: Only this one's statement.
        key: The publisher's public key. With it signature and files are verified; without it
            the manifest is only read.

    Raises:
        ArtifactError: Not a manifest, or not what was signed.
        MissingError: It holds no statement (of that merchant).
    """
    file = path / MANIFEST_FILE if path.is_dir() else path
    manifest = verify(file.parent, load_public_key(key)) if key else _read(file)
    found = [
        (str(facts.get("merchant", "?")), facts)
        for facts in manifest.privacy
        if merchant in ("", facts.get("merchant"))
    ]
    if not found:
        whom = f"of {merchant!r}" if merchant else "of any merchant"
        raise MissingError(f"{file}: holds no DP statement {whom}")
    statements = [(name, DPStatement.from_dict(facts)) for name, facts in found]
    checked = f"checked with {key.name}, and every file" if key else "not checked (give --key)"
    about = (
        ("source", f"the manifest of {manifest.tenant or 'the federation'}'s adapter"),
        ("adapter", f"version {manifest.version}, made {manifest.created}"),
        ("digest", manifest.digest),
        ("base model", f"{manifest.base_name} ({manifest.base_digest})"),
        ("trained in", f"run {manifest.run or '-'}, round {manifest.round or '-'}"),
        ("grew from", manifest.parent or "the base model"),
        ("signature", checked),
    )
    subjects = tuple(
        Subject(merchant=name, statement=statement, recomputed=recompute(statement))
        for name, statement in statements
    )
    return Source(subjects=subjects, facts=about)


def _read(file: Path) -> Manifest:
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise InputError(f"{file}: larger than {_MOST_BYTES} bytes, so no manifest")
        return Manifest.from_bytes(file.read_bytes())
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None
    except ArtifactError as error:
        raise ArtifactError(f"{file}: {error}") from error

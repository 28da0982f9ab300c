"""The roster for people: the same on the operator's screen and on a merchant's."""

import hashlib
from typing import Any

from rich.table import Table

from handbill.federation.roster import Entry, Roster


def as_facts(roster: Roster) -> dict[str, Any]:
    """The log as plain values, for ``--json``."""
    return {
        "head": roster.head,
        "members": sorted(roster.members),
        "lines": [
            {
                "number": entry.number,
                "action": entry.action,
                "merchant": entry.merchant,
                "key_fingerprint": fingerprint(entry),
                "time": entry.time,
            }
            for entry in roster.entries
        ],
    }


def as_table(roster: Roster) -> Table:
    """The log for a terminal."""
    table = Table("", "merchant", "key", "time", title=f"roster, head {roster.head or '(empty)'}")
    for entry in roster.entries:
        word = {"enrol": "enrolled", "revoke": "revoked"}[entry.action]
        table.add_row(word, entry.merchant, fingerprint(entry), entry.time)
    table.caption = f"{len(roster.members)} may take part now"
    return table


def fingerprint(entry: Entry) -> str:
    """SHA-256 of a merchant's identity key, short enough to read over the telephone."""
    digest = hashlib.sha256(bytes.fromhex(entry.key)).hexdigest()[:20]
    return " ".join(digest[start : start + 4] for start in range(0, len(digest), 4))

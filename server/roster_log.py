"""The operator's roster: merchants of the database as a signed log that they can read."""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from handbill.federation.roster import Action, Roster
from handbill.generator.artifacts import load_public_key, utc_now
from handbill.server.repository import MerchantRepository


def complete_roster(merchants: MerchantRepository, key: Ed25519PrivateKey) -> Roster:
    """Add what the log lacks: a line for each merchant that came, went or has a new key.

    Args:
        merchants: Of a unit of work; the caller commits.
        key: Signs the log.

    Returns:
        The whole log.
    """
    roster = Roster.read(merchants.roster(), key.public_key())
    keys = {m.id: load_public_key(m.public_key.encode()) for m in merchants.all()}
    now = {merchant: key.public_bytes_raw().hex() for merchant, key in keys.items()}
    before = {merchant: key.public_bytes_raw().hex() for merchant, key in roster.members.items()}
    changes: list[tuple[Action, str, str]] = [
        ("revoke", merchant, before[merchant]) for merchant in sorted(before.keys() - now.keys())
    ]
    changes += [("enrol", m, k) for m, k in sorted(now.items()) if before.get(m) != k]
    for action, merchant, public in changes:
        line = roster.next_line(action, merchant, public, time=utc_now(), operator=key)
        roster = Roster.read([*roster.lines, line], key.public_key())
        merchants.add_to_roster(len(roster.lines), line)
    return roster

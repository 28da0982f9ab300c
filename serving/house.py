"""House rules: what a tenant adds to the rules of copy, or may say because it can prove it."""

import math
import time
from typing import Any, Final

from handbill.errors import InputError
from handbill.generator.artifacts import check_tenant
from handbill.generator.claims.checker import NO_HOUSE_RULES, HouseRules, check_permission
from handbill.serving.repository import Repository

# A rule the tenant may break, a brand of others, a text its copy may not repeat.
KINDS: Final = ("permit", "brand", "protect")
MAX_CHARS: Final = 1_000
# Another process may change them.
_FRESH_S: Final = 2.0


class House:
    """The house rules of a service's tenants.

    Args:
        repository: An up-to-date serving database.
    """

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._read: dict[str, tuple[float, HouseRules]] = {}

    def add(self, tenant: str, kind: str, value: str, evidence: str = "") -> int:
        """Add a rule; its id. It is in effect within two seconds.

        Args:
            tenant: Whose.
            kind: One of :data:`KINDS`.
            value: A rule's id, a brand, or a text.
            evidence: Of a permission: what substantiates the claim. Kept for the record.

        Raises:
            InputError: Another kind, nothing of this kind, or no evidence for a permission.
            MissingError: No such tenant.
        """
        if kind not in KINDS:
            raise InputError(f"kind: {kind[:80]!r} is not one of {', '.join(KINDS)}")
        value, evidence = value.strip(), evidence.strip()
        for name, text in (("value", value), ("evidence", evidence)):
            if len(text) > MAX_CHARS:
                raise InputError(f"{name}: has {len(text)} characters; at most {MAX_CHARS}")
        if not value:
            raise InputError("value: is empty")
        if kind == "permit":
            check_permission(value)
            if not evidence:
                raise InputError("evidence: a permission needs what substantiates the claim")
        made = self._repository.add_house_rule(check_tenant(tenant), kind, value, evidence)
        self._read.pop(tenant, None)
        return made

    def remove(self, tenant: str, rule: int) -> None:
        """Take a rule away.

        Raises:
            MissingError: The tenant has none of this id.
        """
        self._repository.remove_house_rule(check_tenant(tenant), rule)
        self._read.pop(tenant, None)

    def list(self, tenant: str) -> list[dict[str, Any]]:
        """A tenant's rules, oldest first."""
        return [
            {
                "id": row.id,
                "kind": row.kind,
                "value": row.value,
                "evidence": row.evidence,
                "created": row.created_at.isoformat(),
            }
            for row in self._repository.house_rules(check_tenant(tenant))
        ]

    def rules(self, tenant: str) -> HouseRules:
        """A tenant's rules as the check takes them."""
        read_s, rules = self._read.get(tenant, (-math.inf, NO_HOUSE_RULES))
        if time.monotonic() - read_s > _FRESH_S:
            rows = self._repository.house_rules(tenant)
            values = {kind: tuple(row.value for row in rows if row.kind == kind) for kind in KINDS}
            rules = HouseRules(
                permitted=frozenset(values["permit"]),
                brands=values["brand"],
                protected=values["protect"],
            )
            self._read[tenant] = (time.monotonic(), rules)
        return rules

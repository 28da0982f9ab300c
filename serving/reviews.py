"""Copy that the check blocked, kept for a person of the tenant's, if the request asked for that."""

from typing import Any, Final

from handbill.errors import InputError
from handbill.generator.claims.checker import check
from handbill.generator.claims.personal import mask_personal
from handbill.serving.house import House
from handbill.serving.orm import ReviewRow
from handbill.serving.repository import Repository

# A decision, and the state it leads to.
DECISIONS: Final = {"approve": "approved", "edit": "edited", "reject": "rejected"}
STATES: Final = ("pending", *DECISIONS.values())


class Reviews:
    """The review queues of a service's tenants.

    Args:
        repository: An up-to-date serving database.
        house: The tenants' own rules: findings are shown by the rules as they are now.
    """

    def __init__(self, repository: Repository, house: House) -> None:
        self._repository = repository
        self._house = house

    def keep(
        self, tenant: str, text: str, *, request: str, artifact: str, title: str
    ) -> int | None:
        """Keep a text, without its personal data; its number, or None when the queue is full."""
        return self._repository.add_review(
            tenant,
            request=request,
            artifact=artifact,
            title=mask_personal(title),
            text=mask_personal(text),
        )

    def list(self, tenant: str, state: str = "pending") -> list[dict[str, Any]]:
        """A tenant's texts in a state, oldest first.

        Raises:
            InputError: There is no such state.
        """
        if state not in STATES:
            raise InputError(f"state: {state[:80]!r} is not one of {', '.join(STATES)}")
        return [self._facts(row) for row in self._repository.reviews(tenant, state)]

    def decide(
        self, tenant: str, review: int, decision: str, *, text: str = "", key: str
    ) -> dict[str, Any]:
        """Approve a text as it is, put another in its place, or reject it, which deletes it.

        Who decides answers for it: an approved text keeps its findings.

        Args:
            tenant: Whose.
            review: Its number.
            decision: One of :data:`DECISIONS`.
            text: Of an edit, the new text.
            key: Id of the key that decides.

        Raises:
            InputError: Another decision, or an edit without text.
            ConflictError: It is decided already.
            MissingError: The tenant has none of this number.
        """
        if decision not in DECISIONS:
            raise InputError(f"decision: {decision[:80]!r} is not one of {', '.join(DECISIONS)}")
        if (decision == "edit") != bool(text.strip()):
            raise InputError("text: an edit has a text, and nothing else has")
        new = {"approve": None, "edit": text.strip(), "reject": ""}[decision]
        row = self._repository.decide_review(
            tenant, review, state=DECISIONS[decision], text=new, key=key
        )
        return self._facts(row)

    def _facts(self, row: ReviewRow) -> dict[str, Any]:
        findings = check(row.text, house=self._house.rules(row.tenant_id))
        return {
            "id": row.id,
            "state": row.state,
            "title": row.title,
            "text": row.text,
            "findings": [finding.facts(row.text) for finding in findings],
            "request": row.request_id,
            "version": row.artifact,
            "created": row.created_at.isoformat(),
            "decided": row.decided_at.isoformat() if row.decided_at else None,
            "decided_by": row.decided_by or None,
        }

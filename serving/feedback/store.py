"""Feedback on served copy: kept for a while, given back to its tenant, deleted when asked.

Nothing here logs or returns what a shopper did but to the tenant it belongs to. Copy of another
tenant and copy that never was give the same answer.
"""

import json
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from handbill.errors import InputError, MissingError
from handbill.serving.config import ServingConfig
from handbill.serving.experiments.trials import Experiments
from handbill.serving.feedback.bodies import EventBody
from handbill.serving.feedback.repository import FeedbackRepository
from handbill.serving.feedback.sealing import Sealing, TenantKeys
from handbill.serving.feedback.tables import AssignmentRow, EventRow, ServedRow
from handbill.serving.orm import utc_now

log = logging.getLogger(__name__)

CLOCK_SKEW: Final = timedelta(minutes=5)  # that a tenant's clock may differ from ours
MAX_PAGE: Final = 1_000
_TIDY_S: Final = 600.0
_UNKNOWN: Final = "copy_id: you were served no such copy, or longer ago than events are kept"


@dataclass(slots=True, kw_only=True)
class Taken:
    """What became of a batch: how many are new, how many were there, which were refused and why."""

    accepted: int = 0
    repeated: int = 0
    refused: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A piece of copy that is about to be served.

    Attributes:
        shopper: Key of the shopper it was written for; empty for everybody's.
        facts: Locked with the tenant's key: the version that wrote it and, if the request asked
            for feedback, the request and the text.
    """

    id: str
    facts: dict[str, Any]
    shopper: str = ""
    experiment: str = ""
    variant: int = 0


class Feedback:
    """The feedback of a service's tenants.

    Args:
        repository: An up-to-date serving database.
        sealing: The tenants' keys.
        days: How long copy and events are kept; 0 keeps none.

    Attributes:
        experiments: Experiments with what is kept here.
    """

    def __init__(
        self, repository: FeedbackRepository, sealing: Sealing, *, days: float = 90.0
    ) -> None:
        self._repository = repository
        self._sealing = sealing
        self._days = days
        self.experiments = Experiments(repository, sealing, days=days)
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def kept(self) -> bool:
        """Whether anything is kept."""
        return self._days > 0

    def start(self) -> None:
        """Tidy now and then, in a thread of its own."""
        self._thread = threading.Thread(target=self._tidy_often, name="feedback", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop tidying; let go of the database."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
        self._repository.close()

    def keep(self, tenant: str, served: Served) -> None:
        """Keep a piece of copy, so that events on it can be told from events on nothing."""
        keys = self._sealing.keys(tenant)
        row = {
            "id": served.id,
            "tenant_id": tenant,
            "experiment_id": served.experiment,
            "variant": served.variant,
            "shopper": keys.shopper(served.shopper) if served.shopper else "",
            "sealed": keys.seal(served.facts, bound_to=served.id),
            "served_at": utc_now(),
        }
        self._repository.add_served([row])

    def take(self, tenant: str, events: Sequence[EventBody], *, partial: bool = False) -> Taken:
        """Take in events; those that are there already change nothing.

        Args:
            tenant: Whose.
            events: At least one.
            partial: Return refusals also when nothing else is left of the batch.

        Raises:
            InputError: None can be used, or no feedback is kept here.
            MissingError: None is about copy that this tenant was served.
        """
        if not self.kept:
            raise InputError("events: this service keeps no feedback (feedback_days is 0)")
        keys, now, taken = self._sealing.keys(tenant), utc_now(), Taken()
        since = self._since()
        known = self._repository.served(tenant, {event.copy_id for event in events}, since=since)
        rows: dict[str, dict[str, Any]] = {}
        places: dict[str, int] = {}
        for place, event in enumerate(events):
            copy = known.get(event.copy_id)
            problem = _problem(event, copy, keys, now) if copy else ("unknown_copy", _UNKNOWN)
            if problem:
                _refuse(taken, place, event, *problem)
                continue
            row = _row(tenant, event, copy, keys, now)  # type: ignore[arg-type]
            first = rows.setdefault(row["event_mac"], row)
            if first is row:
                places[row["event_mac"]] = place
            elif first["content_mac"] == row["content_mac"]:
                taken.repeated += 1
            else:
                _refuse(taken, place, event, *_CONFLICT)
        there = self._repository.add_events(tenant, list(rows.values())) if rows else {}
        for mac, row in rows.items():
            if mac not in there:
                taken.accepted += 1
            elif there[mac] == row["content_mac"]:
                taken.repeated += 1
            else:
                _refuse(taken, places[mac], events[places[mac]], *_CONFLICT)
        taken.refused.sort(key=lambda refusal: int(refusal["index"]))
        if not (partial or taken.accepted or taken.repeated):
            first_refusal = taken.refused[0]
            kind = MissingError if first_refusal["code"] == "unknown_copy" else InputError
            raise kind(first_refusal["message"])
        return taken

    def export(self, tenant: str, *, after: int, limit: int) -> tuple[list[dict[str, Any]], int]:
        """A page of a tenant's events, in the clear, in the order they were received.

        Returns:
            The events, and what to go on after; 0 when there are no more.
        """
        limit = min(limit, MAX_PAGE)
        keys = self._sealing.keys(tenant)
        found = self._repository.events(tenant, after=after, limit=limit, since=self._since())
        exported = [_exported(keys, *row) for row in found]
        events = [event for event in exported if event is not None]
        return events, found[-1][0].seq if len(found) == limit else 0

    def forget_shopper(self, tenant: str, shopper: str) -> dict[str, int]:
        """Delete one shopper's events, copy written for the shopper, and place in experiments."""
        counts = self._repository.forget_shopper(
            tenant, self._sealing.keys(tenant).shopper(shopper)
        )
        log.info("shopper_forgotten", extra={"tenant": tenant})
        return counts

    def forget_tenant(self, tenant: str) -> dict[str, int]:
        """Delete all of a tenant's feedback, experiments and batches, and the key they were locked with."""
        self._sealing.destroy(tenant)
        counts = self._repository.forget_tenant(tenant)
        log.info("feedback_forgotten", extra={"tenant": tenant})
        return counts

    def tidy(self) -> None:
        """Stop experiments that ran as long as events are kept; delete what is older."""
        self.experiments.stop_overdue()
        events = self._repository.purge(self._since())
        if events:
            log.info("events_expired", extra={"events": events})

    def _since(self) -> datetime:
        return utc_now() - timedelta(days=self._days)

    def _tidy_often(self) -> None:
        while True:
            try:
                self.tidy()
            except Exception as error:  # noqa: BLE001 - a full disk, say; the next time may work
                log.error("feedback_not_tidied", extra={"error": type(error).__name__})  # noqa: TRY400
            if self._closing.wait(_TIDY_S):
                return


def open_feedback(config: ServingConfig) -> Feedback:
    """Open a service's feedback; its database is up to date already."""
    return Feedback(
        FeedbackRepository(config.url),
        Sealing(config.state, config.feedback_kek),
        days=config.feedback_days,
    )


_CONFLICT: Final = ("conflict", "id: was used for another event")


def _problem(
    event: EventBody, copy: ServedRow, keys: TenantKeys, now: datetime
) -> tuple[str, str] | None:
    """Why an event on a tenant's own copy cannot be taken."""
    if copy.shopper and copy.shopper != keys.shopper(event.shopper):
        return "other_shopper", "shopper: this copy was written for another one"
    if event.time is not None:
        time = _utc(event.time)
        if time > now + CLOCK_SKEW or time < copy.served_at - CLOCK_SKEW:
            return "time", "time: lies before the copy was served, or in the future"
    return None


def _row(
    tenant: str, event: EventBody, copy: ServedRow, keys: TenantKeys, now: datetime
) -> dict[str, Any]:
    shopper, event_mac = keys.shopper(event.shopper), keys.mac("event", event.id)
    given = _utc(event.time).isoformat() if event.time else ""
    content = json.dumps([event.copy_id, event.kind, shopper, given, event.value])
    facts: dict[str, Any] = {
        "kind": event.kind,
        "shopper": event.shopper,
        "time": given or now.isoformat(),
    }
    if event.value is not None:
        facts["value"] = event.value
    return {
        "tenant_id": tenant,
        "event_mac": event_mac,
        "content_mac": keys.mac("content", content),
        "copy_id": event.copy_id,
        "experiment_id": copy.experiment_id,
        "shopper": shopper,
        "sealed": keys.seal(facts, bound_to=event_mac),
        "received_at": now,
    }


def _exported(
    keys: TenantKeys, event: EventRow, copy: ServedRow | None, drawn: AssignmentRow | None
) -> dict[str, Any] | None:
    facts = keys.opened(event.sealed, bound_to=event.event_mac)
    if facts is None:
        return None
    exported: dict[str, Any] = {
        "seq": event.seq,
        **facts,
        "received": event.received_at.isoformat(),
        "copy_id": event.copy_id,
        "copy": keys.opened(copy.sealed, bound_to=copy.id) if copy is not None else None,
    }
    if event.experiment_id and drawn is not None:
        shares = json.loads(drawn.shares)
        exported["experiment"] = event.experiment_id
        exported["variant"] = drawn.variant
        exported["chance"] = shares[drawn.variant]
    return exported


def _refuse(taken: Taken, index: int, event: EventBody, code: str, message: str) -> None:
    taken.refused.append({"index": index, "id": event.id, "code": code, "message": message})


def _utc(time: datetime) -> datetime:
    """Without a zone, UTC; a time that names none is UTC already."""
    return time.astimezone(UTC).replace(tzinfo=None) if time.tzinfo else time

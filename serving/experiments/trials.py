"""The experiments of a service's tenants: made, given to shoppers, shown, stopped."""

import json
import logging
import math
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from handbill.errors import ArtifactError, InputError
from handbill.serving.errors import ConflictError
from handbill.serving.experiments.allocation import choose, thompson_shares, unit_draw
from handbill.serving.experiments.analysis import analyse
from handbill.serving.experiments.design import Design
from handbill.serving.experiments.outcomes import Drawn, Happened, Outcomes, gather
from handbill.serving.feedback.repository import FeedbackRepository
from handbill.serving.feedback.sealing import Sealing
from handbill.serving.orm import utc_now

if TYPE_CHECKING:
    from handbill.serving.feedback.tables import ExperimentRow

log = logging.getLogger(__name__)

_FRESH_S: Final = 10.0  # a bandit's shares are worked out so seldom


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """The variant a shopper is given."""

    experiment: str
    number: int
    name: str
    settings: dict[str, Any]
    adapter: str


class Experiments:
    """All tenants' experiments.

    Args:
        repository: An up-to-date serving database.
        sealing: The tenants' keys.
        days: How long events are kept, and so an experiment can run.
    """

    def __init__(self, repository: FeedbackRepository, sealing: Sealing, *, days: float) -> None:
        self._repository = repository
        self._sealing = sealing
        self._days = days
        self._shares: dict[str, tuple[float, tuple[float, ...]]] = {}

    def create(self, tenant: str, design: Design) -> dict[str, Any]:
        """Begin an experiment.

        Raises:
            InputError: It could not see a whole window of anybody, or there are too many.
        """
        if design.window >= timedelta(days=self._days):
            raise InputError(
                f"window_hours: events are kept {self._days:g} days, so a window must be shorter"
            )
        made = f"exp-{uuid4().hex[:20]}"
        self._repository.add_experiment(tenant, made, json.dumps(design.to_dict()))
        return self.show(tenant, made)

    def list(self, tenant: str) -> list[dict[str, Any]]:
        """A tenant's experiments without their results, oldest first."""
        return [_facts(row) for row in self._repository.experiments(tenant)]

    def show(self, tenant: str, experiment: str) -> dict[str, Any]:
        """An experiment with what can be said now, or could when it was stopped.

        Raises:
            MissingError: The tenant has none of this id.
        """
        row = self._repository.experiment(tenant, experiment)
        result = json.loads(row.result) if row.result else self._analyse(row)
        return _facts(row) | {"result": result}

    def stop(self, tenant: str, experiment: str) -> dict[str, Any]:
        """Stop an experiment: nobody new is given a variant, and the result stays as it is now.

        Raises:
            MissingError: The tenant has none of this id.
            ConflictError: It is stopped already.
        """
        row = self._repository.experiment(tenant, experiment)
        stopped = row.state == "running" and self._repository.stop_experiment(
            tenant, experiment, json.dumps(self._analyse(row))
        )
        if not stopped:
            raise ConflictError(f"experiment {experiment}: is stopped already")
        return self.show(tenant, experiment)

    def stop_overdue(self) -> None:
        """Stop those that ran as long as events are kept: later, their first ones are gone."""
        for row in self._repository.overdue(utc_now() - timedelta(days=self._days)):
            try:
                result = json.dumps(self._analyse(row))
            except ArtifactError:  # the key is not there now; others must not wait for it
                log.exception("experiment_not_stopped", extra={"experiment": row.id})
            else:
                self._repository.stop_experiment(row.tenant_id, row.id, result)

    def give(self, tenant: str, experiment: str, shopper: str) -> Given:
        """The variant of a shopper, always the same.

        Raises:
            MissingError: The tenant has no such experiment.
            ConflictError: It is stopped.
            InputError: No shopper is named.
        """
        if not shopper:
            raise InputError("shopper_key: an experiment needs one, to show a shopper one variant")
        row = self._repository.experiment(tenant, experiment)
        if row.state != "running":
            raise ConflictError(f"experiment {experiment}: is stopped")
        design = Design.from_json(row.design)
        keys = self._sealing.keys(tenant)
        hashed = keys.shopper(shopper)
        drawn = self._repository.assignment(row.id, hashed)
        if drawn is None:
            shares = self._shares_now(row, design)
            drawn = self._repository.assign(
                tenant,
                row.id,
                hashed,
                variant=choose(shares, unit_draw(keys.draw, row.id, shopper)),
                shares=json.dumps([round(share, 6) for share in shares]),
            )
        variant = design.variants[drawn.variant]
        return Given(
            experiment=row.id,
            number=drawn.variant,
            name=variant.name,
            settings=dict(variant.settings),
            adapter=variant.adapter,
        )

    def _shares_now(self, row: "ExperimentRow", design: Design) -> tuple[float, ...]:
        if not design.bandit:
            return design.shares
        read_s, shares = self._shares.get(row.id, (-math.inf, ()))
        if time.monotonic() - read_s > _FRESH_S:
            outcomes = self._outcomes(row, design)
            hit_N = outcomes.hits(design.metric)
            arms = [outcomes.arm == number for number in range(len(design.variants))]
            shares = thompson_shares(
                [int(hit_N[mine].sum()) for mine in arms],
                [int(mine.sum()) for mine in arms],
                min_share=design.min_share,
            )
            self._shares[row.id] = (time.monotonic(), shares)
        return shares

    def _analyse(self, row: "ExperimentRow") -> dict[str, Any]:
        design = Design.from_json(row.design)
        return analyse(design, self._outcomes(row, design))

    def _outcomes(self, row: "ExperimentRow", design: Design) -> Outcomes:
        keys = self._sealing.keys(row.tenant_id)
        events = self._repository.experiment_events(row.id)
        happened = (
            Happened(shopper=event.shopper, kind=facts["kind"], received=event.received_at)
            for event in events
            if (facts := keys.opened(event.sealed, bound_to=event.event_mac)) is not None
        )
        drawn = {
            one.shopper: Drawn(variant=one.variant, shares=tuple(json.loads(one.shares)))
            for one in self._repository.drawn(row.id)
        }
        return gather(
            happened,
            drawn,
            variants=len(design.variants),
            window=design.window,
            now=utc_now(),
        )


def _facts(row: "ExperimentRow") -> dict[str, Any]:
    return {
        "object": "experiment",
        "id": row.id,
        "state": row.state,
        "created": row.created_at.isoformat(),
        "stopped": row.stopped_at.isoformat() if row.stopped_at else None,
        **json.loads(row.design),
    }

"""What is answered about events and experiments, as types."""

from typing import Annotated, Any, Literal

from pydantic import Field

from handbill.serving.results import Answered


class RefusedEvent(Answered):
    """An event that was not taken."""

    index: int
    """Its place in the request, from 0."""
    id: str
    """Its id."""
    code: str
    """`unknown_copy`, `other_shopper`, `conflict` or `time`."""
    message: str
    """Why, in words."""


class EventsTaken(Answered):
    """What became of a batch of events."""

    object: Literal["events"]
    """Always `events`."""
    accepted: int
    """How many are new."""
    repeated: int
    """How many were there already."""
    refused: list[RefusedEvent]
    """The others."""


class Event(Answered):
    """An event as it is kept, in the clear."""

    seq: int
    """Its number: go on after it."""
    kind: Literal["impression", "click", "conversion"]
    """What the shopper did."""
    shopper: str
    """The shopper's key."""
    time: str
    """When it happened, UTC."""
    received: str
    """When it was received, UTC."""
    copy_id: str
    """The copy it is about."""
    copied: Annotated[dict[str, Any] | None, Field(alias="copy")]
    """The version, and with `feedback` the request and the text."""
    value: float | None = None
    """Of a conversion, what it was worth."""
    experiment: str | None = None
    """The experiment, if the copy was of one."""
    variant: int | None = None
    """Number of the variant."""
    chance: float | None = None
    """The chance the variant had for this shopper."""


class EventPage(Answered):
    """Some of the events, in the order they were received."""

    object: Literal["list"]
    """Always `list`."""
    data: list[Event]
    """The events."""
    next: int | None
    """Go on with `after` = this; null at the end."""


class Deleted(Answered):
    """What was deleted, in rows."""

    object: Literal["deletion"]
    """Always `deletion`."""
    events: int
    """Events."""
    copies: int
    """Pieces of copy that were remembered."""
    assignments: int
    """Places in experiments."""


class Variant(Answered):
    """One way of writing copy."""

    name: str
    """Its name."""
    settings: dict[str, Any]
    """Fields of the request for copy that it fixes."""
    adapter: str
    """Which published adapter writes; empty for what the tenant is served anyway."""
    share: float
    """Of the shoppers, in proportion to the others'."""


class Experiment(Answered):
    """An experiment."""

    object: Literal["experiment"]
    """Always `experiment`."""
    id: str
    """Its id, for requests for copy."""
    name: str
    """Its name."""
    state: Literal["running", "stopped"]
    """Whether it still gives variants."""
    created: str
    """When it began, UTC."""
    stopped: str | None
    """When it was stopped, UTC."""
    variants: list[Variant]
    """The first is what the others are compared with."""
    metric: Literal["click", "conversion"]
    """What of a shopper counts."""
    result: dict[str, Any] | None = None
    """Rates with intervals and what can be said of the difference; docs/feedback.md explains it."""


class ExperimentList(Answered):
    """Experiments without their results, oldest first."""

    object: Literal["list"]
    """Always `list`."""
    data: list[Experiment]
    """The experiments."""

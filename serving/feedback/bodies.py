"""Bodies of requests about feedback and experiments."""

from datetime import datetime
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_EVENTS: Final = 500
# No white space and no @: a key stands for a shopper, and is no name, address or e-mail.
ShopperKey = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:=+/~-]{1,128}$")]
_Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:=+/~-]{1,128}$")]
_Number = Annotated[float, Field(allow_inf_nan=False)]


class EventBody(BaseModel):
    """One thing a shopper did with a piece of copy.

    Attributes:
        id: The tenant's own name of the event: sent again, it is taken once.
        shopper: A key that stands for the shopper and is always the same for the same one.
        time: When it happened; when it was received if not given.
        value: Of a conversion, what it was worth to the shop.
    """

    model_config = ConfigDict(extra="forbid", strict=True)
    id: _Id
    copy_id: Annotated[str, Field(max_length=64)]
    kind: Literal["impression", "click", "conversion"]
    shopper: ShopperKey
    time: Annotated[datetime, Field(strict=False)] | None = None  # JSON has no times
    value: Annotated[_Number, Field(ge=0, le=1e9)] | None = None


class EventsBody(BaseModel):
    """``POST /v1/events``.

    Attributes:
        partial: Answer 200 also when every event is refused: each is named anyway.
    """

    model_config = ConfigDict(extra="forbid", strict=True)
    events: Annotated[list[EventBody], Field(min_length=1, max_length=MAX_EVENTS)]
    partial: bool = False


class ForgetBody(BaseModel):
    """``DELETE /v1/events``: one shopper, or everything."""

    model_config = ConfigDict(extra="forbid", strict=True)
    shopper: ShopperKey | None = None
    everything: bool = False

    @model_validator(mode="after")
    def _one_of_both(self) -> "ForgetBody":
        if (self.shopper is None) == (not self.everything):
            raise ValueError("name a shopper, or say everything: true")
        return self


class VariantBody(BaseModel):
    """A variant; see :class:`~handbill.serving.experiments.design.Variant`."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: Annotated[str, Field(max_length=63)]
    settings: dict[str, Any] = {}
    adapter: Annotated[str, Field(max_length=71)] = ""
    share: _Number = 1.0


class ExperimentBody(BaseModel):
    """``POST /v1/experiments``; see :class:`~handbill.serving.experiments.design.Design`."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: Annotated[str, Field(max_length=63)]
    variants: Annotated[list[VariantBody], Field(max_length=16)]
    metric: Annotated[str, Field(max_length=20)] = "click"
    allocation: Annotated[str, Field(max_length=20)] = "fixed"
    min_share: _Number | None = None
    window_hours: _Number = 24.0
    alpha: _Number = 0.05

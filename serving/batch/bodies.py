"""Bodies of requests about batches."""

from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

MAX_ROWS: Final = 1_000  # of one request
_Rows = list[dict[str, Any]]


def _whole(value: Any) -> Any:
    """To JSON, 3.0 is the number 3."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class BatchBody(BaseModel):
    """``POST /v1/copy/batch``."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)
    rows: Annotated[_Rows, Field(max_length=MAX_ROWS)] = []
    """Requests for copy, each with the fields of `/v1/copy` but `stream`, and an `id` of yours."""
    defaults: dict[str, Any] = {}
    """Fields that rows which do not give them have."""
    key: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{0,64}$")] = ""
    """Your name of the batch: sent again under it, the batch that is there comes back."""
    more: bool = False
    """Further rows will come; else it starts at once."""


class RowsBody(BaseModel):
    """``POST /v1/copy/batch/ID/rows``."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)
    offset: Annotated[int, Field(ge=0, lt=2**31), BeforeValidator(_whole)]
    """The number of the first of these rows. Rows that are there already stay as they are."""
    rows: Annotated[_Rows, Field(min_length=1, max_length=MAX_ROWS)]
    """The rows."""

"""A typed Python client of the service.

    from handbill.serving.client import Client

    with Client("http://127.0.0.1:8000", api_key) as client:
        result = client.copy("Oak desk lamp", description="Warm light, dimmer", n=2)
        for piece in result.copies:
            print(piece.text)

:class:`AsyncClient` has the same methods for asyncio. Answers are the types of
:mod:`handbill.serving.results`; refusals are :class:`ApiError` and its subclasses.
"""

from handbill.serving.client.async_client import AsyncClient
from handbill.serving.client.calls import CopyFields, Message, TextSettings
from handbill.serving.client.client import Client
from handbill.serving.client.errors import (
    ApiError,
    BlockedError,
    ConflictError,
    KeyRefusedError,
    LimitError,
    NoAnswerError,
    NotFoundError,
    NotPermittedError,
    RefusedError,
    ServiceError,
)
from handbill.serving.client.streams import TextPiece

__all__ = [
    "ApiError",
    "AsyncClient",
    "BlockedError",
    "Client",
    "ConflictError",
    "CopyFields",
    "KeyRefusedError",
    "LimitError",
    "Message",
    "NoAnswerError",
    "NotFoundError",
    "NotPermittedError",
    "RefusedError",
    "ServiceError",
    "TextPiece",
    "TextSettings",
]

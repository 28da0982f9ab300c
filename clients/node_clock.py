"""The clock that a SuperNode signs with: the server's, where this machine's is wrong.

Flower's SuperLink takes a request only if the time signed in it is at most 5 s ahead of its own clock
and 305 s behind, and a SuperNode that is refused stops. So a wrong clock would shut a merchant out.
Every answer of the server says its time, through the same TLS: after a refusal that time is signed.
It gives nobody anything: the signature says no more than that this node is there, to this server.
"""

import email.utils
import logging
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import httpx
from flwr.supernode import node_auth_http_interceptor as flower

log = logging.getLogger("flwr")  # a SuperNode's log

_TICK_S: Final = 1.5  # an answer may say the time of a second ago, from before the clock jumped
_NOISE: Final = timedelta(seconds=3)  # the server's time comes in whole seconds, and takes its way


class ServerClock:
    """The server's time, as far as it is known.

    Attributes:
        ahead: How much this machine's clock is before the server's.
    """

    def __init__(self) -> None:
        """Trust this machine's clock until something speaks against it."""
        self.ahead = timedelta()

    def now(self) -> datetime:
        """The time to sign."""
        return datetime.now(UTC) - self.ahead

    def heed(self, answer: httpx.Response, signed_ahead: timedelta) -> bool:
        """Take the server's time from a refusal; says whether it differs from what was signed.

        Args:
            answer: The refusal.
            signed_ahead: :attr:`ahead` when the request was signed; another thread may have
                learnt more since.
        """
        try:
            there = email.utils.parsedate_to_datetime(answer.headers["date"])
            ahead = datetime.now(UTC) - there
        except (KeyError, TypeError, ValueError):
            return False
        if abs(ahead - signed_ahead) <= _NOISE:
            return False
        if abs(ahead - self.ahead) > _NOISE:
            self.ahead = ahead
            log.warning(
                "This machine's clock is %.0f s %s the server's. Set it: instructions and "
                "certificates expire by it.",
                abs(ahead.total_seconds()),
                "ahead of" if ahead > timedelta() else "behind",
            )
        return True


class TimelyAuth(flower.NodeAuthHttpInterceptor):  # type: ignore[misc]  # flwr is untyped here
    """Flower's node authentication, by the server's clock where this machine's is refused."""

    def __init__(self, *keys: Any) -> None:
        """Sign with a node's keys."""
        super().__init__(*keys)
        self._clock = ServerClock()
        # By thread: the heartbeat's doubt must not make the first refusal of a message a last one.
        self._doubt = threading.local()
        flower.now = self._clock.now  # what the signed time is taken from

    def intercept(self, context: Any, call_next: Any) -> httpx.Response:
        """Sign, send, and have it sent again if it may be only the clock that was refused.

        Raises:
            httpx.ReadError: It may; whoever asked tries again after such an error.
        """
        signed_ahead = self._clock.ahead
        answer: httpx.Response = super().intercept(context, call_next)
        if answer.status_code != httpx.codes.UNAUTHORIZED:
            self._doubt.here = False
        elif self._clock.heed(answer, signed_ahead):
            raise httpx.ReadError("the server's clock differs", request=context.request)
        elif not getattr(self._doubt, "here", False):
            self._doubt.here = True
            time.sleep(_TICK_S)
            raise httpx.ReadError("the server's clock may have jumped", request=context.request)
        return answer

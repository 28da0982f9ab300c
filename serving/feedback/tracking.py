"""A request for copy and feedback: which variant answers it, and that its copy is remembered."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from starlette.concurrency import run_in_threadpool

from handbill.serving.answers import CopyAnswer, Piece
from handbill.serving.copy_body import CopyBody
from handbill.serving.errors import BadRequestError
from handbill.serving.experiments.trials import Given
from handbill.serving.feedback.store import Served
from handbill.serving.tenants import Caller

if TYPE_CHECKING:
    from handbill.serving.gateway import Gateway


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracking:
    """What feedback has to do with one request.

    Attributes:
        body: The request as the variant has it.
        given: The shopper's variant, if the request is of an experiment.
    """

    gateway: "Gateway"
    caller: Caller
    body: CopyBody
    given: Given | None = None

    @property
    def adapter(self) -> str:
        """The variant's adapter; empty for what the tenant is served anyway."""
        return self.given.adapter if self.given else ""

    @property
    def trial(self) -> dict[str, str] | None:
        """What the answer says of the experiment."""
        if self.given is None:
            return None
        return {"id": self.given.experiment, "variant": self.given.name}

    async def kept(
        self, pieces: AsyncGenerator[Piece, None], answer: CopyAnswer
    ) -> AsyncGenerator[Piece, None]:
        """The same pieces; a copy is remembered before it is given out."""
        async with aclosing(pieces):
            async for index, delta in pieces:
                if answer.tracked and delta.text:  # copy comes whole, because it was checked first
                    served = self._served(answer, index, delta.text)
                    await run_in_threadpool(self.gateway.feedback.keep, self.caller.tenant, served)
                yield index, delta

    def _served(self, answer: CopyAnswer, index: int, text: str) -> Served:
        facts: dict[str, Any] = {"version": answer.version}
        if self.given:
            facts["variant"] = self.given.name
        if self.body.feedback:
            facts |= {
                "request": asdict(self.body.request(self.gateway.scenarios.of(self.caller.tenant))),
                "text": text,
            }
        return Served(
            id=answer.copy_id(index),
            facts=facts,
            shopper=self.body.shopper_key,
            experiment=self.given.experiment if self.given else "",
            variant=self.given.number if self.given else 0,
        )


def tracking_of(gateway: "Gateway", caller: Caller, body: CopyBody) -> Tracking:
    """Look up the shopper's variant, if the request names an experiment.

    Raises:
        BadRequestError: Feedback is asked for, and this service keeps none.
        MissingError: The tenant has no such experiment.
        ConflictError: It is stopped.
        InputError: The request names no shopper.
    """
    if not gateway.feedback.kept and (body.feedback or body.experiment):
        raise BadRequestError("feedback: this service keeps none", param="feedback")
    if not body.experiment:
        return Tracking(gateway=gateway, caller=caller, body=body)
    given = gateway.feedback.experiments.give(caller.tenant, body.experiment, body.shopper_key)
    varied = body.model_copy(update=given.settings)
    return Tracking(gateway=gateway, caller=caller, body=varied, given=given)

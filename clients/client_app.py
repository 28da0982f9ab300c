"""The Flower ClientApp: a thin shim between a SuperNode and the merchant's trainer.

It holds no data and no model. Set ``HANDBILL_COLD=1`` (``handbill client run --cold``) to load
the trainer in this process instead, once for every message: the slow way, kept to measure it.
"""

import os
from pathlib import Path
from typing import Final

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from handbill.clients.daemon import MESSAGE, ask
from handbill.clients.refusals import TrainerError, refusal
from handbill.federation.grid import from_record, to_record

HOME_VARIABLE: Final = "HANDBILL_MERCHANT_HOME"
COLD_VARIABLE: Final = "HANDBILL_COLD"
_RESTART_S: Final = 30.0  # a trainer that died in one round is back for the next

app = ClientApp()


@app.train()  # type: ignore[untyped-decorator]  # flwr carries no types for mypy here
def train(message: Message, context: Context) -> Message:
    """Pass one instruction to the trainer and its report back.

    Raises:
        TrainerError: There is no report. Flower sends its text to the server, and no other's.
    """
    del context
    try:
        report = _report(Path(os.environ[HOME_VARIABLE]), from_record(message.content))
    except Exception as error:  # noqa: BLE001 - logged and told by refusal
        said = refusal(error)
    else:
        return Message(to_record(report), reply_to=message)
    raise TrainerError(said)  # out here, for it brings no other error along


def _report(home: Path, instruction: bytes) -> bytes:
    if os.environ.get(COLD_VARIABLE) == "1":
        from handbill.clients.cold import handle

        return handle(home, instruction)
    return ask(home, MESSAGE, instruction, wait_s=_RESTART_S)

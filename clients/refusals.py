"""What the operator is told when a message was not answered, and what the shop's own log says.

Only words that were made for it leave the merchant: those of a refusal that belongs to the
protocol, without where a file lies on this machine. Of anything else that goes wrong the operator
learns the kind; its text might hold a row.
"""

import logging
import os
from typing import Final

from handbill.errors import (
    BudgetExhaustedError,
    HandbillError,
    LedgerError,
    PolicyError,
    ProtocolError,
)

log = logging.getLogger(__name__)


class TrainerError(HandbillError):
    """The trainer refused, or is not there."""


_TOLD: Final = (BudgetExhaustedError, LedgerError, PolicyError, ProtocolError, TrainerError)


def refusal(error: Exception) -> str:
    """Log why a message was not answered; returns what the operator is told."""
    if not isinstance(error, HandbillError):
        log.error("trainer_failed", exc_info=error)
    elif not isinstance(error, TrainerError):  # whose log has it
        log.warning("refused", extra={"reason": str(error)})
    if isinstance(error, _TOLD):
        return error.told
    kind = type(error).__name__
    if isinstance(error, HandbillError):
        return f"the merchant's machine cannot do it ({kind}); its own log says why"
    if isinstance(error, OSError):  # a full disk, say; the system's own words name no file
        said = os.strerror(error.errno) if error.errno else kind
        return f"the merchant's machine says: {said}; see its own log"
    return f"the merchant's trainer failed ({kind}); see its own log"

"""The errors handbill raises on purpose.

Every one is a :class:`HandbillError`: its message names what was refused and what to do, and
is safe to show (no personal data). The command line prints it in one line and exits with 1;
the HTTP service maps ``status_code``.
"""

from pathlib import Path
from typing import ClassVar


class HandbillError(Exception):
    """Base of every error handbill raises on purpose.

    Attributes:
        told: The message as another party may read it: without where a file lies on this machine.
    """

    status_code: ClassVar[int] = 500

    def __init__(self, message: str = "", *, path: Path | None = None) -> None:
        """Say what was refused.

        Args:
            message: What, and what to do.
            path: The file it is about, on this machine; set before the message.
        """
        super().__init__(f"{path}: {message}" if path else message)
        self.told = message


class InputError(HandbillError):
    """A file, field or option the user gave cannot be used."""

    status_code = 400


class MissingError(HandbillError):
    """A named thing does not exist, or is not the caller's to see."""

    status_code = 404


class ArtifactError(HandbillError):
    """An artifact, manifest or channel does not match its digest, signature or schema."""

    status_code = 422


class PolicyError(HandbillError):
    """The merchant's own policy refuses what the server asked for."""

    status_code = 403


class ProtocolError(HandbillError):
    """A message of the round is malformed, unsigned, replayed or out of order."""

    status_code = 400


class NonFiniteUpdateError(ProtocolError):
    """An update holds NaN or infinity, which no clipping can bound."""


class RoundError(HandbillError):
    """A round could not be committed; the last committed round stands."""

    status_code = 409


class LeaseError(RoundError):
    """This process may take no rounds of the run: another one does, or the run was ended."""


class BudgetExhaustedError(HandbillError):
    """The next private step would pass the merchant's privacy limit; nothing was spent."""

    status_code = 409

    def __init__(
        self,
        *,
        after: float,
        limit: float,
        delta: float,
        spent: float = 0.0,
        run_steps: int = 0,
        repeated: int = 0,
    ) -> None:
        """Say what was refused.

        Args:
            after: Epsilon with what was asked for.
            limit: Of the policy.
            delta: What both are stated at.
            spent: Epsilon of what was done before.
            run_steps: Private steps of the run that was refused as a whole; 0 for one training.
            repeated: Attempts of this run that pay for a round a second time.
        """
        what = f"this run of {run_steps} private steps" if run_steps else "this training"
        why = f" (attempts that were repeated paid twice: {repeated})" if repeated else ""
        remedy = "Lower epsilon_per_run in policy.toml, or raise" if run_steps else "Raise"
        super().__init__(
            f"privacy budget: {what} would bring epsilon from {spent:.3f} to {after:.3f} at delta "
            f"{delta:.2e}, over the limit {limit:.3f} of this shop's policy{why}; refused, nothing "
            f"was spent. {remedy} epsilon_limit in policy.toml, if your shoppers were promised no "
            f"less."
        )
        self.after = after
        self.limit = limit
        self.delta = delta


class LedgerError(HandbillError):
    """The privacy ledger is damaged, edited or older than what was already released."""

    status_code = 409

"""Whether a statement's epsilon follows from its events: computed again, three ways."""

from dataclasses import asdict, dataclass
from typing import Any, Final

from handbill.errors import MissingError
from handbill.privacy import accounting
from handbill.privacy.pld import Bounds, pld_bounds
from handbill.privacy.statement import DPStatement

# Other versions of the same libraries may round otherwise; our own error bound is 0.5 % or 0.01.
_RELATIVE: Final = 0.005
_ABSOLUTE: Final = 0.01
_COARSE: Final = 1e-3  # of PLD: a second, and at most 0.01 wider where steps are few


@dataclass(frozen=True, slots=True, kw_only=True)
class Recomputed:
    """What a statement says, and what its events give.

    Attributes:
        stated: Epsilon as stated.
        prv: Epsilon by the accountant that handbill pays by (an upper bound, tight).
        rdp: Epsilon by Renyi DP, an upper bound found another way (looser).
        pld: Bounds by dp-accounting, another library; None where it is not installed.
    """

    stated: float
    prv: float
    rdp: float
    pld: Bounds | None

    @property
    def agrees(self) -> bool:
        """Whether the statement says what its events give, and claims no more than can be."""
        close = abs(self.stated - self.prv) <= max(_ABSOLUTE, _RELATIVE * self.prv)
        return close and (self.pld is None or self.stated >= self.pld.lower)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        pld = self.pld and self.pld._asdict()
        return {**asdict(self), "pld": pld, "agrees": self.agrees}

    def in_words(self) -> str:
        """Return the outcome in a sentence or two."""
        other = (
            f"dp-accounting puts the true value between {self.pld.lower:.3f} and {self.pld.upper:.3f}"
            if self.pld
            else "dp-accounting, a second library, is not installed here and was not asked"
        )
        verdict = "the statement is right" if self.agrees else "the statement is WRONG"
        return (
            f"stated epsilon {self.stated:.3f}, computed again {self.prv:.3f}: {verdict}. "
            f"By Renyi DP, which is looser, {self.rdp:.3f}; {other}."
        )


def recompute(statement: DPStatement) -> Recomputed:
    """Compute epsilon from a statement's events, believing nothing else in it.

    Raises:
        InputError: Events or a delta that no accountant can bound.
    """
    events, delta = statement.events, statement.delta
    try:
        pld = pld_bounds(events, delta=delta, interval=_COARSE)
    except MissingError:
        pld = None
    return Recomputed(
        stated=statement.epsilon,
        prv=accounting.epsilon(events, delta=delta),
        rdp=accounting.rdp_epsilon(events, delta=delta),
        pld=pld,
    )

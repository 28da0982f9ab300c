"""Ends the trial of a candidate that is worse than what is served beside it.

Each request was given candidate or stable by a fixed chance, so a difference between the two is the
candidate's doing. An answer fails when the model cannot be served or all that it wrote was blocked by the
check of copy; a request that was refused for what it asks is nobody's failure. Of copy that was served, the
share of the product's attributes that it leaves out is compared. The tests may be looked at after every request
(:func:`handbill.serving.experiments.sequential.evidence`): a candidate as good as the stable model is ever
sent back with probability at most ``ALPHA``.

Whoever is served can choose who its requests are for, and so which of the two fails for it. So a candidate
for everybody is sent back only if it is worse also without the answers of any one tenant. That is stricter for
each tenant left out, and so no likelier by chance.
"""

import logging
from collections import Counter
from typing import Final

import numpy as np

from handbill.generator.channels import GLOBAL_CHANNEL
from handbill.serving.canary_repository import Answered, CanaryRepository
from handbill.serving.experiments.sequential import pair_p
from handbill.serving.registry import Trial

log = logging.getLogger(__name__)

ALPHA: Final = 0.01
_MOST: Final = 5_000  # requests looked at: who passed these is not sent back by later ones
_MOST_OF_ONE: Final = 500  # of them for a candidate for everybody: one tenant's flood hides nothing


class Canaries:
    """Judges trials by what all gateways of a database answered.

    Args:
        url: The database.
    """

    def __init__(self, url: str) -> None:
        self._repository = CanaryRepository(url)

    def close(self) -> None:
        """Let go of the database."""
        self._repository.close()

    def halted(self, trial: Trial) -> bool:
        """Whether a trial is over; looks at what was answered since it was first seen."""
        seen = self._repository.find(trial.channel, trial.serial)
        if seen is None:
            self._repository.begin(trial.channel, trial.serial, trial.candidate.digest)
            return False
        if seen.halted_at is not None:
            return True
        everybody = trial.channel == GLOBAL_CHANNEL
        answers = self._repository.answers(
            seen.seen_at,
            tenant="" if everybody else trial.channel,
            artifacts=(trial.stable, trial.candidate.digest),
            most=_MOST,
            each=_MOST_OF_ONE if everybody else _MOST,
        )
        if not _is_worse(answers, trial):
            return False
        if everybody and self._repository.tenants() > 1:
            failed = Counter(a.tenant for a in answers if a.failed and a.artifact != trial.stable)
            tenants = [tenant for tenant, _ in failed.most_common()]
            tenants += sorted({a.tenant for a in answers} - set(tenants))
            for one in tenants:
                if not _is_worse([a for a in answers if a.tenant != one], trial):
                    return False
        self._repository.halt(trial.channel, trial.serial)
        facts = {"channel": trial.channel, "artifact": trial.candidate.digest}
        log.error("canary_halted", extra=facts)
        return True


def _is_worse(answers: list[Answered], trial: Trial) -> bool:
    """Whether these show that the candidate fails more often, or leaves out more of the product."""
    failed = [(answer.artifact, float(answer.failed)) for answer in answers]
    missing = [(a.artifact, a.missing) for a in answers if a.missing is not None]
    return any(_is_more(found, trial) for found in (failed, missing))


def _is_more(found: list[tuple[str, float]], trial: Trial) -> bool:
    """Whether what was found of each answer, from 0 to 1, is more of the candidate's."""
    arm_N = np.array([artifact != trial.stable for artifact, _ in found], dtype=np.int64)
    found_N = np.array([value for _, value in found])
    if len(set(arm_N.tolist())) < 2:
        return False  # one of the two has not answered yet
    share = trial.percent / 100
    share_NK = np.tile([1 - share, share], (len(found), 1))
    if found_N[arm_N == 1].mean() <= found_N[arm_N == 0].mean():
        return False
    return pair_p(arm_N, share_NK, found_N, first=0, second=1) <= ALPHA / 2  # two are looked at

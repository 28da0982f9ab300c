"""Ends the trial of a candidate that fails more often than what is served beside it.

Each request was given candidate or stable by a fixed chance, so a difference between the two is the
candidate's doing. An answer fails when the model cannot be served or what it wrote was blocked by the
check of copy. The test may be looked at after every request
(:func:`handbill.serving.experiments.sequential.evidence`): a candidate as good as the stable model is ever
sent back with probability at most ``ALPHA``.
"""

import logging
from typing import Final

import numpy as np

from handbill.generator.channels import GLOBAL_CHANNEL
from handbill.serving.canary_repository import CanaryRepository
from handbill.serving.experiments.sequential import pair_p
from handbill.serving.registry import Trial

log = logging.getLogger(__name__)

ALPHA: Final = 0.01
_MOST: Final = 5_000  # requests looked at: who passed these is not sent back by later ones


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
        answers = self._repository.answers(
            seen.seen_at,
            tenant="" if trial.channel == GLOBAL_CHANNEL else trial.channel,
            artifacts=(trial.stable, trial.candidate.digest),
            most=_MOST,
        )
        arm_N = np.array([artifact != trial.stable for artifact, _ in answers], dtype=np.int64)
        failed_N = np.array([failed for _, failed in answers], dtype=np.int64)
        share = trial.percent / 100
        share_NK = np.tile([1 - share, share], (len(answers), 1))
        if arm_N.min(initial=1) == arm_N.max(initial=0):
            return False  # one of the two has not answered yet
        p = pair_p(arm_N, share_NK, failed_N, first=0, second=1)
        if p > ALPHA or failed_N[arm_N == 1].mean() <= failed_N[arm_N == 0].mean():
            return False
        self._repository.halt(trial.channel, trial.serial)
        facts = {"channel": trial.channel, "artifact": trial.candidate.digest, "p": p}
        log.error("canary_halted", extra=facts)
        return True

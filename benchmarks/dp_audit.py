"""Audit the build as it is and five broken ones: ``python benchmarks/dp_audit.py``.

Counts and bounds only, nothing is timed. Noise is fresh in every run, so figures move a little.
"""

import contextlib
import tempfile
from pathlib import Path
from typing import Any, Final
from unittest import mock

import torch
from broken_builds import BROKEN
from membership import attack

from handbill.privacy import canaries
from handbill.privacy.canaries import AuditPlan, AuditResult, audit_mechanism
from handbill.privacy.noise import SecureNoise
from handbill.simulations.results import write_result

RESULT: Final = Path(__file__).parent / "results" / "dp_audit.json"
PLAN: Final = AuditPlan()
SMALLER_NOISE: Final = (0.9, 0.8, 0.7, 0.6, 0.5)
EPSILON: Final = 8.0  # of the private model under membership inference
NOTES: Final = (
    "Lower bounds at 95 % confidence, delta 1e-6. one_run assumes nothing about the mechanism "
    "(arXiv:2305.08846); gaussian assumes independent canaries and Gaussian noise, which a broken "
    "build may not have: there it says no more than that the claim is false. audited is the larger "
    "of the two. A build is caught when audited exceeds what it claims; all claim claimed_epsilon "
    "but not_composed, which claims its last round. membership: an adapter trained on half of 100 "
    "invented shoppers (a tiny random base model), attacked by loss; AUC 0.5 is guessing."
)


def with_noise(factor: float) -> contextlib.AbstractContextManager[Any]:
    class Less(SecureNoise):
        def gaussian(self, like: Any, stddev: float) -> torch.Tensor:
            return super().gaussian(like, stddev * factor)

    return mock.patch.object(canaries, "SecureNoise", Less)


def audited(name: str, build: contextlib.AbstractContextManager[Any]) -> AuditResult:
    with build:
        result = audit_mechanism(PLAN)
    print(f"{name:14} claimed {result.claimed:.2f}, audited {result.audited:.2f}", flush=True)
    return result


def row(name: str, result: AuditResult) -> dict[str, Any]:
    bounds = {
        f"{attack_name}.{bound}": round(value, 3)
        for attack_name, found in result.attacks.items()
        for bound, value in found.items()
    }
    return {
        "input": name,
        "claimed": round(result.claimed, 3),
        **bounds,
        "refuted": result.refuted,
    }


def main() -> None:
    torch.set_num_threads(1)
    good = audited("good", contextlib.nullcontext())
    broken = {name: audited(name, build()) for name, build in BROKEN.items()}
    smaller = {f"noise x {f:g}": audited(f"noise x {f:g}", with_noise(f)) for f in SMALLER_NOISE}
    metrics: dict[str, float] = {
        "claimed_epsilon": good.claimed,
        "delta": PLAN.delta,
        "canaries": PLAN.canaries,
        "caught": sum(result.refuted for result in broken.values()),
        "broken_builds": len(broken),
        "false_alarms": int(good.refuted),
    }
    for name, result in {"good": good, **broken}.items():
        metrics[f"audited.{name}"] = result.audited
        metrics[f"one_run.{name}"] = result.one_run
        metrics[f"gaussian.{name}"] = result.gaussian
        metrics[f"claimed.{name}"] = result.claimed
    for name, epsilon in (("private", EPSILON), ("not_private", None)):
        with tempfile.TemporaryDirectory() as folder:
            tried = attack(Path(folder), epsilon=epsilon)
        print(f"membership, {name}: AUC {tried.found.auc:.3f}", flush=True)
        metrics |= {
            f"membership.{name}.auc": tried.found.auc,
            f"membership.{name}.tpr_at_1_percent": tried.found.tpr_at_1_percent,
            f"membership.{name}.epsilon": tried.found.epsilon,
            f"membership.{name}.most": tried.found.most,
            f"membership.{name}.loss_before": tried.loss[0],
            f"membership.{name}.loss_after": tried.loss[1],
        }
    metrics["membership.private.claimed"] = EPSILON
    write_result(
        RESULT,
        command="python benchmarks/dp_audit.py",
        metrics={name: round(value, 6) for name, value in metrics.items()},
        table=[row(name, r) for name, r in {"good": good, **broken, **smaller}.items()],
        notes=NOTES,
    )


if __name__ == "__main__":
    main()

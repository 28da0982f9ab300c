"""What is reported of an experiment: rates with intervals, differences, and whether to believe them."""

from typing import Any

import numpy as np

from handbill.serving.experiments.design import Design
from handbill.serving.experiments.intervals import clustered_share, wilson
from handbill.serving.experiments.offpolicy import Logged, crossed_model, to_dict
from handbill.serving.experiments.outcomes import Outcomes
from handbill.serving.experiments.sequential import confidence_sequence, pair_p, sample_ratio_p

# A ratio of shoppers as odd as this is a broken experiment, not chance.
_BROKEN_P = 0.001


def analyse(design: Design, outcomes: Outcomes) -> dict[str, Any]:
    """Everything the experiment says now; counts and rates only, no shopper.

    Intervals called ``interval`` hold for one look, and under a bandit, which lets the past decide
    who is shown what, not at all: they are left out there. ``always_valid`` ones hold for all looks
    together, bandit or not; a p-value is one of those too. The first variant is what the others
    are compared with; those p-values and differences allow for their number (Bonferroni).
    """
    k = len(design.variants)
    hit_N = outcomes.hits(design.metric)
    shared = design.alpha / max(1, k - 1)
    rates = []
    for number in range(k):
        mine = outcomes.arm == number
        rates.append(confidence_sequence(int(hit_N[mine].sum()), int(mine.sum()), alpha=shared / 2))
    variants = [_variant(design, outcomes, number) | {"against_first": None} for number in range(k)]
    for number in range(1, k):
        p = pair_p(outcomes.arm, outcomes.share, hit_N, first=0, second=number)
        variants[number]["against_first"] = {
            "difference": rates[number].value - rates[0].value,
            "always_valid": [
                rates[number].low - rates[0].high,
                rates[number].high - rates[0].low,
            ],
            "p": min(1.0, p * (k - 1)),
        }
    ratio_p = sample_ratio_p(outcomes.arm, outcomes.share)
    found = [v for v in variants if v["against_first"] and v["against_first"]["p"] <= design.alpha]
    broken = ratio_p < _BROKEN_P
    return {
        "metric": design.metric,
        "shoppers": len(outcomes.arm),
        "waiting": outcomes.waiting,
        "variants": variants,
        "sample_ratio_p": ratio_p,
        "broken": broken,
        "different": [v["name"] for v in found] if not broken else [],
        "best": _best(variants, found) if not broken else None,
    }


def _variant(design: Design, outcomes: Outcomes, number: int) -> dict[str, Any]:
    alpha = design.alpha
    mine_N = outcomes.arm == number
    shoppers = int(mine_N.sum())
    impressions, clicks = outcomes.impressions[mine_N], outcomes.clicks[mine_N]
    facts: dict[str, Any] = {
        "name": design.variants[number].name,
        "shoppers": shoppers,
        "impressions": int(impressions.sum()),
        "clicks": int(clicks.sum()),
        "conversions": int(outcomes.conversions[mine_N].sum()),
    }
    for name, metric in (("click_rate", "click"), ("conversion_rate", "conversion")):
        hits = int(outcomes.hits(metric)[mine_N].sum())
        steady = confidence_sequence(hits, shoppers, alpha=alpha)
        facts[name] = {
            "value": hits / shoppers if shoppers else None,
            "interval": _pair(wilson(hits, shoppers, alpha=alpha)) if not design.bandit else None,
            "always_valid": _pair(steady),
        }
    per_impression = clustered_share(clicks, impressions, alpha=alpha)
    facts["ctr"] = {
        "value": per_impression.value if shoppers else None,
        "interval": _pair(per_impression) if not design.bandit else None,
    }
    facts["for_everybody"] = _for_everybody(design, outcomes, number) if len(mine_N) else None
    return facts


def _for_everybody(design: Design, outcomes: Outcomes, number: int) -> dict[str, Any]:
    """The rate, had everybody been shown this variant: what a bandit's own means do not tell."""
    n = len(outcomes.arm)
    reward_N = outcomes.hits(design.metric).astype(float)
    other_NK = np.zeros_like(outcomes.share)
    other_NK[:, number] = 1.0
    model_N, other_model_N = crossed_model(outcomes.arm, reward_N, other_NK)
    rows = np.arange(n)
    log = Logged(
        reward=reward_N,
        chance=outcomes.share[rows, outcomes.arm],
        other=other_NK[rows, outcomes.arm],
        model=model_N,
        other_model=other_model_N,
    )
    return to_dict(log, alpha=design.alpha)


def _best(variants: list[dict[str, Any]], found: list[dict[str, Any]]) -> str | None:
    """The best of those shown to differ from the first, or the first if all of them are worse."""
    if not found:
        return None
    best = max(found, key=lambda v: float(v["against_first"]["difference"]))
    return str(best["name"] if best["against_first"]["difference"] > 0 else variants[0]["name"])


def _pair(estimate: Any) -> list[float]:
    return [estimate.low, estimate.high]

"""The model card that goes with every artifact, for people who meet the file without us."""

from collections.abc import Sequence
from typing import Any

from handbill.generator.base_models import BaseModel
from handbill.generator.interest_spec import InterestSpec
from handbill.generator.model_specs import ModelSpec
from handbill.server.records import Round


def model_card(
    base: BaseModel,
    spec: ModelSpec,
    attempt: Round,
    *,
    privacy: Sequence[dict[str, Any]],
    tenant: str = "",
    sums: Sequence[int] = (),
) -> str:
    """Markdown with the front matter that PEFT and the hubs read."""
    made_in = f"run `{attempt.run}`, {attempt.stage} round {attempt.number}"
    if isinstance(spec, InterestSpec):
        lines = [
            "---",
            "tags: [recommendation, federated, differential-privacy]",
            "---",
            "",
            "# handbill: the federation's model of shoppers' interest",
            "",
            f"The chance that a shopper likes a product: facts of both, hashed into {spec.buckets} "
            f"buckets, a linear layer beside one of {spec.hidden} hidden units; {made_in}.",
            "",
        ]
    else:
        what = f"{tenant}'s own adapter" if tenant else "the federation's global adapter"
        lines = [
            "---",
            f"base_model: {base.name}",
            "library_name: peft",
            "tags: [lora, federated, differential-privacy]",
            "---",
            "",
            f"# handbill: {what}",
            "",
            f"LoRA of rank {spec.rank} on layers {spec.layers[0]} to {spec.layers[-1]} of "
            f"`{base.name}` (`{base.digest[:19]}`), {made_in}.",
            "A is a fixed random projection, only B was trained (FFA-LoRA).",
            "",
        ]
    lines += [
        "## Privacy",
        "",
    ]
    if attempt.stage == "warmup":
        lines.append(
            "Trained on product descriptions only. No shopper's data was used, so there is no noise "
            "and nothing was spent of any privacy budget."
        )
    lines += [
        f"- {statement['merchant']}: one shopper's influence on everything this merchant sent "
        f"is bounded by epsilon = {statement['epsilon']:.2f} at delta = {statement['delta']:.1e} "
        f"({statement['adjacency']}, {statement['unit']}), {statement['steps']} private steps."
        for statement in privacy
    ]
    if sums:
        lines += [
            "",
            f"The operator learnt the sum of {' and of '.join(str(n) for n in sums)} merchants' "
            f"updates in this round, and no update by itself (secure aggregation, protocol SA-1).",
        ]
    elif not tenant:
        lines += ["", "The operator was given the merchants' updates one by one in this round."]
    lines += ["", "The machine-readable statements are in `manifest.json`, which is signed.", ""]
    return "\n".join(lines)

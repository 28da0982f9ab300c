"""``handbill privacy plan``: a recipe and a default policy, worked out before anything is spent."""

from dataclasses import dataclass, replace
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from handbill.clients.merchant import Policy
from handbill.errors import InputError
from handbill.federation.messages import Recipe
from handbill.privacy.plan import Outline, Plan, alternatives, make_plan, suggest
from handbill.privacy.utility import TABLE, Range, expected_range


@dataclass(frozen=True, slots=True, kw_only=True)
class Prospect:
    """A plan, what else the same budget buys, and what to expect.

    Attributes:
        alternatives: With the plan's rounds and with twice as many, by shoppers a step.
        suggested: One of them with the plan's rounds.
        expected: How far the held-out loss may fall, from measured runs.
        warnings: What speaks against it.
    """

    recipe: Recipe
    policy: Policy
    plan: Plan
    alternatives: tuple[Plan, ...]
    suggested: Plan
    expected: Range
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {
            **self.plan.to_dict(),
            "rows_per_user": self.recipe.rows_per_user,
            "expected_loss_fall": {"low": self.expected.low, "high": self.expected.high},
            "in_words": self.plan.in_words(),
            "alternatives": [other.to_dict() for other in self.alternatives],
            "suggested_expected_users": self.suggested.outline.expected_users,
            "warnings": list(self.warnings),
        }


def work_out(
    recipe: Recipe, *, shoppers: int, epsilon: float, delta: float | None, merchants: int
) -> Prospect:
    """Plan a run for a shop with so many shoppers, held-out ones among them.

    Raises:
        InputError: Fewer shoppers than one step wants, a delta that protects nobody, an epsilon
            that cannot be reached.
    """
    policy = Policy.for_users(shoppers, epsilon_limit=epsilon, epsilon_per_run=epsilon)
    if delta is not None:
        policy = replace(policy, delta=delta)
    if policy.users > 1 and policy.delta >= 1 / policy.users:
        raise InputError(
            f"delta={policy.delta:g} is not below 1 / {policy.users} shoppers: publishing one of "
            f"them in the clear would pass. Leave it out, or take less"
        )
    plan = make_plan(
        Outline(
            users=policy.users,
            epsilon=epsilon,
            delta=policy.delta,
            rounds=recipe.rounds,
            local_steps=recipe.local_steps,
            personal_steps=recipe.personal_steps,
            spare_rounds=policy.spare_rounds,
            expected_users=recipe.expected_users,
            merchants=merchants,
            clipping_norm=recipe.clipping_norm,
        )
    )
    others = alternatives(plan, most_users=int(policy.users * policy.max_sampling_rate))
    return Prospect(
        recipe=recipe,
        policy=policy,
        plan=plan,
        alternatives=tuple(others),
        suggested=suggest([p for p in others if p.outline.rounds == recipe.rounds]),
        expected=expected_range(noise=plan.noise, steps=plan.global_steps),
        warnings=(*_refused_by(policy, recipe), *plan.warnings()),
    )


def show(prospect: Prospect) -> Group:
    """Return the form for a terminal."""
    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(prospect):
        facts.add_row(Text(name, style="bold"), Text(value))
    warnings = (Text(f"warning: {warning}", style="yellow") for warning in prospect.warnings)
    return Group(facts, _options(prospect), Text(_advice(prospect)), *warnings)


def _facts(prospect: Prospect) -> list[tuple[str, str]]:
    plan, outline = prospect.plan, prospect.plan.outline
    shops = "1 such shop" if outline.merchants == 1 else f"{outline.merchants} such shops"
    unknown = "" if prospect.expected.low else "; no run with as much noise was measured"
    return [
        ("shoppers", f"{outline.users:,} to train on, the rest held out; {shops}"),
        (
            "steps",
            f"{outline.rounds} rounds of {outline.local_steps}, then {outline.personal_steps} for "
            f"the shop's own adapter: {outline.steps}",
        ),
        (
            "a step",
            f"about {outline.expected_users} shoppers (sampling rate {outline.sampling_rate:.4g}), "
            f"at most {prospect.recipe.rows_per_user} rows of each",
        ),
        ("noise multiplier", f"{plan.noise_multiplier:.4f}"),
        (
            "epsilon",
            f"{plan.epsilon:.3f} of {outline.epsilon:g} at delta {outline.delta:.2e}, "
            f"{plan.epsilon_at_most:.3f} if {_times(outline.spare_rounds)} to be repeated; one round "
            f"alone would cost {plan.epsilon_one_round:.3f}",
        ),
        (
            "noise of a step",
            f"{plan.noise_stddev:.2g} in each coordinate of the mean gradient, {plan.noise:.2%} of "
            f"the clipping norm",
        ),
        ("signal to noise", plan.in_words()),
        (
            "expected",
            f"held-out loss falls by {prospect.expected.in_words()}, going by {len(TABLE)} measured "
            f"runs{unknown}",
        ),
    ]


def _times(rounds: int) -> str:
    return "a round has" if rounds == 1 else f"{rounds} rounds have"


def _options(prospect: Prospect) -> Table:
    """The same budget spent otherwise."""
    table = Table(
        title="the same budget otherwise",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
    )
    for heading in (
        "rounds",
        "shoppers",
        "noise mult.",
        "noise",
        "signal",
        "compute",
        "loss falls",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for plan in prospect.alternatives:
        fall = expected_range(noise=plan.noise, steps=plan.global_steps)
        table.add_row(
            str(plan.outline.rounds),
            str(plan.outline.expected_users),
            f"{plan.noise_multiplier:.3f}",
            f"{plan.noise_stddev:.2g}",
            f"{plan.signal_to_noise:,.0f}",
            f"{plan.compute / prospect.plan.compute:.1f}x",
            fall.in_words(unit=""),
            style="bold" if plan.outline == prospect.plan.outline else "",
        )
    return table


def _advice(prospect: Prospect) -> str:
    """The suggestion in a sentence."""
    best, plan = prospect.suggested, prospect.plan
    what = f"suggested: {best.outline.expected_users} shoppers a step"
    if best.outline != plan.outline:
        what += (
            f", {best.noise / plan.noise:.0%} of the plan's noise at "
            f"{best.compute / plan.compute:.1f} times its compute"
        )
    same = [p for p in prospect.alternatives if p.outline.rounds == plan.outline.rounds]
    return what + ("; more would be quieter still" if best is same[-1] else "; more change little")


def _refused_by(policy: Policy, recipe: Recipe) -> list[str]:
    """What the default policy of such a shop would refuse."""
    found = []
    if policy.users < policy.min_users:
        found.append(
            f"{policy.users} shoppers are below the default policy's min_users={policy.min_users}: "
            f"such a shop trains nothing"
        )
    if recipe.expected_users > policy.users * policy.max_sampling_rate:
        found.append(
            f"{recipe.expected_users} shoppers a step are more than the share of "
            f"max_sampling_rate={policy.max_sampling_rate:g} that the default policy allows; "
            f"the shop would refuse"
        )
    if recipe.rows_per_user > policy.max_rows_per_user:
        found.append(
            f"rows_per_user={recipe.rows_per_user} is over the default policy's "
            f"{policy.max_rows_per_user}; the shop would refuse"
        )
    return found

"""``handbill audit``: attack the privacy of this build, or of a shop's own adapters."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console, Group
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from handbill.clients.membership import ShopAudit
    from handbill.privacy.canaries import AuditResult


def audit(
    *,
    canaries: Annotated[int, typer.Option(min=100, help="Canary shoppers to train on.")] = 4000,
    rounds: Annotated[int, typer.Option(min=1, help="Private rounds, of two steps each.")] = 16,
    epsilon: Annotated[float, typer.Option(help="Claim to audit, for all rounds together.")] = 3.0,
    shop: Annotated[
        str, typer.Option(metavar="ID", help="Attack this shop's own adapters instead.")
    ] = "",
    shoppers: Annotated[
        int, typer.Option(min=2, help="With --shop: attack at most so many.")
    ] = 400,
    as_json: Annotated[bool, typer.Option("--json", help="Print facts as JSON.")] = False,
    home: Annotated[
        Path, typer.Option(envvar="HANDBILL_HOME", help="Where handbill keeps its files.")
    ] = Path(".handbill"),
) -> None:
    """Attack private training with canary shoppers and compare with the epsilon it claims.

    With --shop: try to tell from a shop's adapters which of its shoppers were trained on; the
    figures stay on this machine. Exits with 1 when an attack refutes the claim.
    """
    if shop:
        attacked = _audit_shop(home, shop, shoppers=shoppers, quiet=as_json)
        refuted, facts, shown = attacked.refuted, attacked.to_dict(), show_shop(attacked)
    else:
        audited = _audit_build(canaries, rounds=rounds, epsilon=epsilon, quiet=as_json)
        refuted, facts, shown = audited.refuted, audited.to_dict(), show_build(audited)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
    else:
        Console(soft_wrap=True, highlight=False).print(shown)
    if refuted:
        raise typer.Exit(1)


def show_build(result: "AuditResult") -> Group:
    """Claim, bounds and verdict."""
    plan = result.plan
    table = _table(f"{plan.canaries} canary shoppers, {result.inside} of them trained on")
    table.add_column("epsilon", justify="right")
    table.add_row(f"claimed: {plan.rounds} rounds in the ledger", f"{result.claimed:.2f}")
    table.add_row("at least, whatever the mechanism does", f"{result.one_run:.2f}")
    table.add_row("at least, if its noise is Gaussian", f"{result.gaussian:.2f}")
    return Group(table, result.in_words())


def show_shop(result: "ShopAudit") -> Group:
    """One line for each adapter, and what it means."""
    table = _table(f"{result.shop}: who was trained on?")
    for heading in ("shoppers", "AUC", "found at 1 % false", "epsilon at least", "of at most"):
        table.add_column(heading, justify="right")
    for arm, found in result.adapters.items():
        table.add_row(
            arm,
            str(found.candidates),
            f"{found.auc:.3f}",
            f"{found.tpr_at_1_percent:.1%}",
            f"{found.epsilon:.2f}",
            f"{found.most:.2f}",
        )
    return Group(table, result.in_words())


def _audit_build(canaries: int, *, rounds: int, epsilon: float, quiet: bool) -> "AuditResult":
    with _progress(quiet=quiet) as bar:
        task = bar.add_task("train on canaries", total=2 * rounds)
        import torch

        from handbill.privacy.canaries import AuditPlan, audit_mechanism

        torch.set_num_threads(1)  # the matrices are small: more threads wait for each other
        plan = AuditPlan(canaries=canaries, rounds=rounds, epsilon=epsilon)
        return audit_mechanism(plan, on_round=lambda: bar.advance(task))


def _audit_shop(home: Path, shop: str, *, shoppers: int, quiet: bool) -> "ShopAudit":
    with _progress(quiet=quiet) as bar:
        task = bar.add_task("load data and model", total=None)
        from handbill.clients.membership import audit_shop
        from handbill.clients.trainer import Trainer
        from handbill.generator.artifacts import check_tenant

        trainer = Trainer(home / "shops" / check_tenant(shop))

        def on_step(adapter: str, done: int, total: int) -> None:
            bar.update(task, description=f"losses: {adapter}", completed=done, total=total)

        return audit_shop(trainer, shoppers=shoppers, on_step=on_step)


def _progress(*, quiet: bool) -> Progress:
    errors = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    return Progress(
        *columns, console=errors, transient=True, disable=quiet or not errors.is_terminal
    )


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("")
    return table

"""``handbill client``: what a merchant's engineer runs beside the shop's data."""

import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

client_cli = typer.Typer(help="Take part in a federation as a merchant.", no_args_is_help=True)

Home = Annotated[Path, typer.Option(envvar="HANDBILL_HOME", help="Where handbill keeps its files.")]
Shop = Annotated[str, typer.Option(metavar="ID", help="Which shop, if the home holds several.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print facts as JSON.")]
Invitation = Annotated[
    str, typer.Option(envvar="HANDBILL_INVITATION", help="From the operator; best by environment.")
]
DEFAULT_HOME = Path(".handbill")
# What an empty line of a policy means.
_EMPTY = {
    "software": "any handbill",
    "base": "the base model on this machine",
    "lost_ledger_head": "none",
}


@client_cli.command()
def init(
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="The shop's folder, or its shop.toml.")
    ],
    *,
    kit: Annotated[
        Path | None, typer.Option(help="Folder the operator gave you; a link fetches it.")
    ] = None,
    shop: Shop = "",
    describe: Annotated[Path | None, typer.Option(help="A description outside DATA.")] = None,
    base: Annotated[str, typer.Option(help="Base model on this machine; the kit's.")] = "",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    dtype: Annotated[
        str, typer.Option(help="float32; bfloat16 holds the base in half the memory.")
    ] = "float32",
    threads: Annotated[int, typer.Option(help="CPU threads to train with; 0 is all.")] = 0,
    epsilon: Annotated[float, typer.Option(help="Privacy limit for all this shop sends.")] = 8.0,
    secure_aggregation: Annotated[
        bool, typer.Option(help="Give updates only to sums of 5 merchants or more that hide them.")
    ] = True,
    invitation: Invitation = "",
    home: Home = DEFAULT_HOME,
) -> None:
    """Set up a merchant: keys, policy, the enrolment request; an invitation by link sends it, too."""
    from handbill.clients.enrolment import fetch_kit
    from handbill.clients.run import init_merchant, only_shop
    from handbill.errors import InputError
    from handbill.federation.invitation import InvitationLink

    shop = shop or only_shop(data, describe)
    folder = home / "shops" / shop
    link = InvitationLink.parse(invitation) if invitation.startswith("https:") else None
    with TemporaryDirectory() as fetched:
        if link and not kit:
            kit = fetch_kit(link, Path(fetched))
        if not kit:
            raise InputError("give the operator's kit with --kit, or a link as the invitation")
        request = init_merchant(
            folder,
            data=data,
            shop=shop,
            kit=kit,
            describe=describe,
            base=base,
            device=device,
            dtype=dtype,
            threads=threads,
            epsilon=epsilon,
            secure_aggregation=secure_aggregation,
            invitation=link.secret if link else invitation,
        )
    typer.echo(f"policy (yours alone to change): {request.parent / 'policy.toml'}")
    if link:
        _enrol(folder, link)
    else:
        typer.echo(f"give the operator: {request}")


@client_cli.command()
def enrol(*, shop: Shop = "", invitation: Invitation = "", home: Home = DEFAULT_HOME) -> None:
    """Send the enrolment request to the operator's desk, where `client init` could not.

    The invitation is the link that `client init` was given, or a newer one.
    """
    from handbill.clients.run import prove_request
    from handbill.federation.invitation import InvitationLink

    folder = merchant_folder(home, shop)
    link = InvitationLink.parse(invitation)
    prove_request(folder, link.secret)
    _enrol(folder, link)


def _enrol(folder: Path, link: Any) -> None:
    from handbill.clients.enrolment import send_request
    from handbill.clients.run import ENROLMENT_FILE

    name = send_request(link, folder, folder / ENROLMENT_FILE)
    typer.echo(f"enrolled as {folder.name} ({name}); next: handbill client run")


@client_cli.command()
def run(
    *,
    shop: Shop = "",
    cold: Annotated[
        bool, typer.Option("--cold", help="Load everything anew for each message (slow).")
    ] = False,
    metrics_port: Annotated[
        int, typer.Option(help="Show figures for Prometheus and health on this port; 0 does not.")
    ] = 0,
    home: Home = DEFAULT_HOME,
) -> None:
    """Take part: run trainer and SuperNode in the foreground until Ctrl-C."""
    from handbill.clients.run import run_merchant

    folder = merchant_folder(home, shop)
    run_merchant(
        folder,
        cold=cold,
        metrics_port=metrics_port,
        announce=lambda: typer.echo(f"{folder.name} is ready"),
    )


@client_cli.command()
def ledger(*, shop: Shop = "", as_json: AsJson = False, home: Home = DEFAULT_HOME) -> None:
    """Show what of the privacy budget is spent on what, and what is left."""
    from handbill.clients.ledger_view import LedgerView

    view = LedgerView.of(merchant_folder(home, shop))
    if as_json:
        typer.echo(json.dumps(view.to_dict(), indent=2))
    else:
        Console(highlight=False).print(view.shown())


@client_cli.command()
def status(*, shop: Shop = "", as_json: AsJson = False, home: Home = DEFAULT_HOME) -> None:
    """Show whether the trainer runs and what it did last."""
    from handbill.clients.daemon import STATUS, ask
    from handbill.clients.journal import Journal
    from handbill.clients.merchant import PROGRESS_FILE
    from handbill.errors import HandbillError

    folder = merchant_folder(home, shop)
    try:
        facts: dict[str, Any] = {"running": True, **json.loads(ask(folder, STATUS))}
    except HandbillError:
        facts = {"running": False, "merchant": folder.name}
    path = folder / PROGRESS_FILE
    lines = path.read_text().splitlines() if path.is_file() else []
    facts["last"] = json.loads(lines[-1]) if lines else {}
    head = Journal(folder / "journal").audit_head()
    facts["operator_audit_head"] = f"{head.seq}:{head.hash}" if head else ""
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    state = f"runs (process {facts['pid']})" if facts["running"] else "does not run"
    typer.echo(f"{folder.name}: the trainer {state}")
    if last := facts["last"]:
        ago = time.time() - last["time"]
        typer.echo(f"last: {last['event']} {last['stage']} round {last['round']}, {ago:.0f} s ago")
    if head:
        typer.echo(f"operator's audit head: {facts['operator_audit_head']}")


@client_cli.command()
def policy(
    *,
    shop: Shop = "",
    pin: Annotated[
        bool,
        typer.Option("--pin", help="Allow no other handbill and base model than those of now."),
    ] = False,
    as_json: AsJson = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Show what this shop allows, whatever the server asks, and check it against what is installed."""
    from dataclasses import asdict, replace

    from handbill.clients.merchant import POLICY_FILE, Merchant, Policy
    from handbill.generator.base_models import resolve_base
    from handbill.privacy.software import package_digest

    folder = merchant_folder(home, shop)
    allowed = Policy.load(folder)
    installed = {
        "software": package_digest(),
        "base": resolve_base(Merchant.load(folder).base).digest,
    }
    if pin:
        allowed = replace(allowed, software=installed["software"], base=installed["base"])
        allowed.save(folder)
    if as_json:
        typer.echo(json.dumps({"policy": asdict(allowed), "installed": installed}, indent=2))
    else:
        console = Console(soft_wrap=True)  # a digest is of use only whole
        console.print(str(folder / POLICY_FILE), markup=False, highlight=False)
        for name, value in asdict(allowed).items():
            console.print(f"  {name:<20}{value if value != '' else _EMPTY[name]}", highlight=False)
        if pin:
            typer.echo("a running trainer reads it when it is started again")
    allowed.check_installed(**installed)


@client_cli.command()
def roster(*, shop: Shop = "", as_json: AsJson = False, home: Home = DEFAULT_HOME) -> None:
    """Show who may be in a sum with this shop, as the operator's signed log says.

    Ask other merchants for the head they see: equal heads, equal rosters.
    """
    from handbill.clients.secure_sums import read_roster
    from handbill.federation.roster_table import as_facts, as_table

    found = read_roster(merchant_folder(home, shop))
    if as_json:
        typer.echo(json.dumps(as_facts(found), indent=2))
    else:
        Console().print(as_table(found))


@client_cli.command()
def evaluate(
    *,
    shop: Shop = "",
    rows: Annotated[int, typer.Option(min=1, help="Held-out shoppers to measure on.")] = 64,
    written: Annotated[int, typer.Option(min=1, help="How many to write copy for.")] = 16,
    as_json: AsJson = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Measure base, federated and own adapter on this shop's held-out shoppers.

    The numbers stay on this machine; a running trainer does the work.
    """
    from handbill.clients.daemon import EVALUATE, ask

    folder = merchant_folder(home, shop)
    asked = json.dumps({"rows": rows, "written": written}).encode()
    result = json.loads(ask(folder, EVALUATE, asked))
    if as_json:
        typer.echo(json.dumps(result, indent=2, ensure_ascii=False))
        return
    table = Table("", "held-out loss", "ROUGE-L", "distinct-2", title=folder.name)
    for arm, score in result["arms"].items():
        table.add_row(
            arm, f"{score['loss']:.3f}", f"{score['rouge_l']:.3f}", f"{score['distinct_2']:.3f}"
        )
    Console().print(table)
    if result["other_prompts"]:
        typer.echo(
            "warning: these adapters were trained with other scenarios than this shop's of now; "
            "what is measured is a question they did not learn",
            err=True,
        )


def merchant_folder(home: Path, shop: str) -> Path:
    """Return the home of a merchant that was set up here: the one named, or the only one."""
    from handbill.errors import MissingError
    from handbill.generator.artifacts import check_tenant

    shops = home / "shops"
    there = sorted(path.parent.name for path in shops.glob("*/merchant.toml"))
    if not shop and len(there) == 1:
        shop = there[0]
    if not shop:
        names = ", ".join(there) or "none; run `handbill client init`"
        raise MissingError(f"{shops}: say which shop with --shop: {names}")
    if check_tenant(shop) not in there:
        raise MissingError(f"{shops}: no shop {shop!r}; there is {', '.join(there) or 'none'}")
    return shops / shop

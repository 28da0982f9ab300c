"""``handbill models`` and ``handbill server``: what the operator asks of the registry."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from handbill.server.catalogue import Model
    from handbill.server.registry import Registry

Home = Annotated[Path, typer.Option(envvar="HANDBILL_HOME", help="Where handbill keeps its files.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print facts as JSON.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
Tenant = Annotated[str, typer.Option(metavar="ID", help="The tenant; everyone if not given.")]
Name = Annotated[
    str, typer.Argument(metavar="VERSION|DIGEST|latest", help="See handbill models list.")
]
DEFAULT_HOME = Path(".handbill")

models_app = typer.Typer(help="Trained models: list, inspect, publish.", no_args_is_help=True)
server_cli = typer.Typer(help="The operator's server: rounds and audit.", no_args_is_help=True)


@models_app.command("list")
def list_models(*, as_json: AsJson = False, home: Home = DEFAULT_HOME) -> None:
    """List every model with what it scored, what it promises, and who is served by it."""
    from handbill.server.catalogue import models

    with _registry(home) as registry:
        found = models(registry)
    if as_json:
        _print_json({"models": [model.to_dict() for model in found]})
        return
    table = Table("version", "for", "round", "digest", "measured", "epsilon", "served to")
    for model in found:
        artifact = model.artifact
        table.add_row(
            f"v{artifact.version}",
            _whom(model),
            str(model.round or ""),
            _short(artifact.digest),
            _metrics(model.metrics),
            _epsilons(model),
            "removed" if model.removed else ", ".join(model.served),
        )
    _console().print(table if found else "No model yet: handbill server train makes the first.")


@models_app.command()
def show(
    name: Name = "latest",
    *,
    tenant: Tenant = "",
    as_json: AsJson = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Show one model: its manifest, its line back to the base model, its privacy in words."""
    from handbill.server.catalogue import find, lineage, statement_in_words

    with _registry(home) as registry:
        model = find(registry, name, tenant=tenant)
        line = lineage(registry, model)
    words = [statement_in_words(statement) for statement in model.privacy]
    manifest = model.artifact.manifest
    if as_json:
        facts = model.to_dict() | {"lineage": [a.digest for a in line], "privacy_in_words": words}
        _print_json(facts)
        return
    table = Table.grid(padding=(0, 2))
    for label, value in [
        ("model", f"v{model.artifact.version} for {_whom(model)}"),
        ("digest", model.artifact.digest),
        ("base model", f"{manifest['base_name']} ({_short(manifest['base_digest'])})"),
        ("trained in", f"run {manifest['run'] or '-'}, round {model.round or '-'}"),
        ("made", manifest["created"]),
        ("served to", ", ".join(model.served) or "nobody"),
        ("files", ", ".join(f"{n} ({e['size_bytes']:,} B)" for n, e in manifest["files"].items())),
        ("measured", ", ".join(f"{n} {v:.4g}" for n, v in sorted(model.metrics.items())) or "-"),
        *(
            [("prompts", manifest.get("prompts") or "of the shipped scenarios")]
            if manifest["kind"] == "tenant"
            else []
        ),
        ("grew from", " <- ".join([*(_label(a) for a in line), manifest["base_name"]])),
    ]:
        table.add_row(f"[bold]{label}", escape(value))
    console = _console()
    console.print(table)
    for sentence in words or ["No privacy statement: no shopper's data was used."]:
        console.print(f"\n{escape(sentence)}")


@models_app.command()
def verify(
    name: Annotated[
        str, typer.Argument(metavar="DIGEST|VERSION|all", help="One model, or everything.")
    ] = "all",
    *,
    tenant: Tenant = "",
    as_json: AsJson = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Hash all files again; check signatures, database, audit chain and channels; exit 1 if wrong."""
    from handbill.server.catalogue import find
    from handbill.server.verification import verify_artifact, verify_registry

    with _registry(home) as registry:
        if name == "all":
            result = verify_registry(registry)
            problems, facts = list(result.problems), asdict(result)
            checked = (
                f"{result.artifacts} models, {result.rounds} rounds, {result.channels} channels, "
                f"{result.audit_entries} audit entries"
            )
        else:
            model = find(registry, name, tenant=tenant)
            problems = verify_artifact(registry, model.artifact)
            checked = f"model {model.artifact.digest}"
            facts = {"digest": model.artifact.digest, "problems": problems}
    _print_verdict(checked, problems, facts, as_json=as_json)


@models_app.command()
def publish(
    name: Name,
    *,
    tenant: Tenant = "",
    percent: Annotated[
        int,
        typer.Option(min=1, max=100, help="Of the requests; below 100 it is tried on this share."),
    ] = 100,
    as_json: AsJson = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Serve a model to everyone, or to one tenant. A version means the tenant's own version."""
    from handbill.server.catalogue import find

    with _registry(home) as registry:
        digest = find(registry, name, tenant=tenant).artifact.digest
        _print_channel(
            asdict(registry.channels.publish(tenant, digest, percent=percent)), as_json=as_json
        )


@server_cli.command()  # where people look for it in a hurry
@models_app.command()
def rollback(*, tenant: Tenant = "", as_json: AsJson = False, home: Home = DEFAULT_HOME) -> None:
    """Serve again what was published before; ends a trial on a share of the requests first."""
    with _registry(home) as registry:
        _print_channel(asdict(registry.channels.rollback(tenant)), as_json=as_json)


@models_app.command()
def withdraw(
    tenant: Annotated[str, typer.Argument(metavar="ID", help="The tenant.")],
    *,
    as_json: AsJson = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Serve a tenant what everyone is served; there is no roll-back past this."""
    with _registry(home) as registry:
        _print_channel(asdict(registry.channels.withdraw(tenant)), as_json=as_json)


@models_app.command()
def export(
    name: Name,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    *,
    tenant: Tenant = "",
    home: Home = DEFAULT_HOME,
) -> None:
    """Write a model as a plain PEFT folder; a tenant's own is unlocked for that."""
    from handbill.server.catalogue import find
    from handbill.server.export import export as write

    with _registry(home) as registry:
        write(registry, find(registry, name, tenant=tenant).artifact.digest, folder)
    typer.echo(f"wrote {folder}")


@models_app.command()
def prune(
    *,
    keep: Annotated[int, typer.Option(help="So many of each tenant's, and what is served.")],
    yes: Yes = False,
    as_json: AsJson = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Remove the files of tenants' own adapters that newer ones took the place of."""
    from handbill.server.deletion import prune as remove
    from handbill.server.deletion import superseded

    with _registry(home) as registry:
        found = superseded(registry, keep=keep)
        labels = ", ".join(_label(artifact) for artifact in found)
        if found and not yes:
            typer.confirm(f"remove {labels}? They cannot be served again", abort=True, err=True)
        removed = remove(registry, keep=keep) if found else []
    if as_json:
        _print_json({"removed": [artifact.digest for artifact in removed]})
    else:
        typer.echo(f"removed {labels}" if removed else "nothing to remove")


@server_cli.command()
def rounds(
    *,
    run: Annotated[str, typer.Option(metavar="RUN", help="One run only.")] = "",
    show_all: Annotated[bool, typer.Option("--all", help="Abandoned attempts too.")] = False,
    as_json: AsJson = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """List committed rounds."""
    with _registry(home) as registry, registry.database.begin() as uow:
        found = [r for r in uow.rounds.all(run) if show_all or r.status == "committed"]
    if as_json:
        _print_json({"rounds": [asdict(r) for r in found]})
        return
    table = Table("run", "stage", "round", "state", "shops", "measured", "down", "up", "seconds")
    for r in found:
        table.add_row(
            r.run,
            r.stage,
            str(r.number),
            r.status if r.attempt == 1 else f"{r.status} (attempt {r.attempt})",
            f"{len(r.survivors)} of {len(r.cohort)}",
            _metrics(r.metrics),
            _bytes(r.bytes_down),
            _bytes(r.bytes_up),
            f"{r.seconds:.1f}",
        )
    _console().print(table if found else "No round is committed yet.")


@server_cli.command()
def audit(
    *,
    last: Annotated[int, typer.Option(min=0, help="How many entries to print.")] = 20,
    held: Annotated[
        str, typer.Option(metavar="SEQ:HASH", help="A head that a merchant holds: is it in it?")
    ] = "",
    as_json: AsJson = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Print the audit chain after checking every entry; exit 1 if it was changed."""
    from handbill.server.audit import chain_problems, parse_head
    from handbill.server.verification import audit_problems

    with _registry(home) as registry, registry.database.begin() as uow:
        chain = uow.audit.all()
        problems = audit_problems(registry, chain)
        if held:
            problems += chain_problems(chain, signed=parse_head(held))
    shown = chain[-last:] if last else []
    if not as_json:
        table = Table("entry", "time", "who", "did", "to", "result")
        for entry in shown:
            table.add_row(
                str(entry.seq),
                *(
                    escape(text)
                    for text in (entry.time, entry.actor, entry.action, entry.object, entry.result)
                ),
            )
        _console().print(table)
    facts = {"audit_entries": [asdict(entry) for entry in shown], "problems": problems}
    _print_verdict(f"{len(chain)} audit entries", problems, facts, as_json=as_json)


@contextmanager
def _registry(home: Path) -> "Iterator[Registry]":
    from handbill.server.registry import open_registry

    registry = open_registry(home / "server")
    try:
        yield registry
    finally:
        registry.database.close()


def _console() -> Console:
    return Console(soft_wrap=True, highlight=False)


def _print_json(facts: Any) -> None:
    typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))


def _print_channel(channel: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        _print_json(channel)
        return
    whom = channel["tenant"] or "everyone"
    what = channel["digest"] or "what everyone is"
    tried = channel["candidate"]
    beside = f", and {tried} on {channel['percent']} % of the requests" if tried else ""
    typer.echo(f"{whom} is served {what}{beside} (serial {channel['serial']})")


def _print_verdict(
    checked: str, problems: list[str], facts: dict[str, Any], *, as_json: bool
) -> None:
    if as_json:
        _print_json(facts)
    else:
        for problem in problems:
            typer.echo(f"wrong: {problem}")
        typer.echo(f"checked {checked}: {f'{len(problems)} wrong' if problems else 'all sound'}")
    if problems:
        raise typer.Exit(1)


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12]


def _label(artifact: Any) -> str:
    return f"{artifact.tenant or 'global'} v{artifact.version}"


def _whom(model: "Model") -> str:
    whom = model.artifact.tenant or "everyone"
    return whom if model.trains == "copy" else f"{whom} (interest)"


def _metrics(metrics: dict[str, float]) -> str:
    """The two or three numbers that matter in a table: losses first."""
    ordered = sorted(metrics, key=lambda name: ("loss" not in name, name))
    return ", ".join(f"{name} {metrics[name]:.3g}" for name in ordered[:3])


def _epsilons(model: "Model") -> str:
    if model.epsilons is None:
        return "-"
    low, high = model.epsilons
    return f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f}"


def _bytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB" if size >= 10_000 else f"{size} B"

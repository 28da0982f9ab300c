"""``handbill serve``, ``handbill copy`` and ``handbill tenants``."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from handbill.errors import HandbillError, InputError
from handbill.serving.keys import SCOPES

if TYPE_CHECKING:
    from handbill.serving.config import ServingConfig
    from handbill.serving.tenants import Tenants

Home = Annotated[Path, typer.Option(envvar="HANDBILL_HOME", help="Where handbill keeps its files.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print facts as JSON.")]
Url = Annotated[str, typer.Option(envvar="HANDBILL_URL", help="The service.")]
Key = Annotated[str, typer.Option(envvar="HANDBILL_API_KEY", help="Your API key.")]
Shop = Annotated[str, typer.Option(metavar="ID", help="Use the key of HOME/shops/ID.")]
DEFAULT_HOME = Path(".handbill")
DEFAULT_URL = "http://127.0.0.1:8000"

tenants_app = typer.Typer(help="Who is served: tenants and their API keys.", no_args_is_help=True)


def serve(
    *,
    home: Home = DEFAULT_HOME,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 for a free one.")] = None,
    base: Annotated[str | None, typer.Option(help="Base model: name, folder or hub id.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
    engine: Annotated[str | None, typer.Option(help="torch or vllm.")] = None,
    replicas: Annotated[int | None, typer.Option(help="Engines, each a process.")] = None,
    registry: Annotated[
        Path | None, typer.Option(help="Registry folder; HOME/server/registry if not given.")
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Port of 127.0.0.1 with live charts, and for Prometheus.")
    ] = None,
    with_parent: Annotated[
        bool, typer.Option("--with-parent", help="Stop when the process that started it ends.")
    ] = False,
) -> None:
    """Serve copy to tenants until Ctrl-C. Other settings: HANDBILL_SERVING_<FIELD>."""
    given = {"host": host, "port": port, "base": base, "device": device, "registry": registry}
    config = open_config(home, engine=engine, replicas=replicas, metrics_port=metrics_port, **given)
    stopped = threading.Event()
    parent = os.getppid()
    # Until the service is up, a signal must break the start, and what was started is stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from handbill.serving.service import start_service, stop_service

    try:
        url = start_service(config)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopped.set())
        typer.echo(
            f"ready: curl {url}/v1/copy -H 'Authorization: Bearer KEY' "
            f"-H 'Content-Type: application/json' -d '{{\"title\": \"Oak desk lamp\"}}'"
        )
        while not stopped.wait(0.5):
            if with_parent and os.getppid() != parent:
                break
    except KeyboardInterrupt:
        pass
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # stopping takes seconds; a second Ctrl-C waits
        stop_service()


@tenants_app.command("add")
def add(
    tenant: Annotated[str, typer.Argument(metavar="ID", help="Lower-case letters, digits, -.")],
    *,
    name: Annotated[str, typer.Option(help="Name for people.")] = "",
    home: Home = DEFAULT_HOME,
) -> None:
    """Add a tenant."""
    with open_home(home) as tenants:
        tenants.add(tenant, name)
    typer.echo(f"added {tenant}; next: handbill tenants key {tenant}")


@tenants_app.command("key")
def key_command(
    tenant: Annotated[str, typer.Argument(metavar="ID", help="Whose key.")],
    *,
    days: Annotated[float | None, typer.Option(min=0, help="It ends after so many days.")] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(help="generate, feedback or manage; again for another. All if not given."),
    ] = None,
    save: Annotated[
        Path | None, typer.Option(help="Write it to a file (mode 0600) instead of printing it.")
    ] = None,
    as_json: AsJson = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Make an API key. It is shown once and cannot be read again."""
    if save is not None and save.exists():
        raise InputError(f"{save}: is there already; a key is never overwritten")
    with open_home(home) as tenants:
        made = tenants.new_key(tenant, days=days, scopes=scope or ())
    if save is not None:
        save.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(save, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(made.reveal() + "\n")
    shown = {"tenant": tenant, "key_id": made.id}
    shown |= {"saved": str(save)} if save is not None else {"key": made.reveal()}
    if as_json:
        typer.echo(json.dumps(shown))
    else:
        typer.echo(f"{made.id} saved in {save}" if save is not None else made.reveal())


@tenants_app.command("revoke")
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="KEYID", help="See handbill tenants list.")],
    *,
    home: Home = DEFAULT_HOME,
) -> None:
    """End a key now."""
    with open_home(home) as tenants:
        tenants.revoke(key_id)
    typer.echo(f"revoked {key_id}")


@tenants_app.command("list")
def list_tenants(*, as_json: AsJson = False, home: Home = DEFAULT_HOME) -> None:
    """List tenants, their keys and what they used."""
    with open_home(home) as tenants:
        found = tenants.list()
    if as_json:
        typer.echo(json.dumps({"tenants": found}, indent=2, ensure_ascii=False))
        return
    if not found:
        typer.echo("No tenant yet: handbill tenants add ID")
        return
    table = Table("tenant", "name", "keys", "requests", "tokens in", "tokens out")
    for row in found:
        keys = ", ".join(map(_key_in_words, row["keys"]))
        counts = (row["requests"], row["prompt_tokens"], row["completion_tokens"])
        table.add_row(row["id"], row["name"], keys, *map(str, counts))
    Console(soft_wrap=True, highlight=False, markup=False).print(table)


def _key_in_words(key: dict[str, Any]) -> str:
    scopes = "" if len(key["scopes"]) == len(SCOPES) else f": {', '.join(key['scopes'])}"
    return f"{key['id']} ({key['state']}{scopes})"


def open_config(home: Path, **given: Any) -> "ServingConfig":
    """The service's settings, of a home."""
    from handbill.serving.config import PREFIX, ServingConfig

    if given.get("registry") is None and f"{PREFIX}REGISTRY" not in os.environ:
        given["registry"] = home / "server" / "registry"
    return ServingConfig.from_env(state=home / "serving", **given)


@contextmanager
def open_home(home: Path) -> "Iterator[Tenants]":
    """A home's tenants, closed at the end."""
    from handbill.serving.tenants import open_tenants

    tenants = open_tenants(open_config(home))
    try:
        yield tenants
    finally:
        tenants.close()


def key_of(key: str, shop: str, home: Path) -> str:
    """The API key to use."""
    if key:
        return key
    if not shop:
        raise InputError("no API key: give --key, HANDBILL_API_KEY, or --shop ID")
    from handbill.generator.artifacts import check_tenant

    file = home / "shops" / check_tenant(shop) / "api_key"
    if not file.is_file():
        raise InputError(f"{file}: not there; `handbill tenants key {shop} --save {file}` makes it")
    return file.read_text().strip()


def ask(
    method: str,
    url: str,
    path: str,
    *,
    body: dict[str, Any] | None = None,
    key: str,
    shop: str,
    home: Path,
) -> dict[str, Any]:
    """Ask a running service as a tenant.

    Raises:
        InputError: No key, or no service there.
        HandbillError: It refuses.
    """
    import httpx

    url = url.rstrip("/") + path
    headers = {"Authorization": f"Bearer {key_of(key, shop, home)}"}
    try:
        answer = httpx.request(
            method, url, json=body, headers=headers, timeout=300, trust_env=False
        )
        found: dict[str, Any] = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise InputError(f"{url}: {error}; is `handbill serve` running there?") from error
    except ValueError as error:
        raise InputError(f"{url}: is not a handbill service") from error
    if answer.is_error:
        refused = found.get("error", {})
        message = refused.get("message", "refused")
        if kept := refused.get("reviews"):
            message += f" Kept for review as {', '.join(map(str, kept))}: handbill reviews list."
        raise HandbillError(f"{url}: {answer.status_code}: {message}")
    return found

"""``handbill client feedback``: a merchant fetches what shoppers did with its copy, to train on it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from handbill.clients.commands import DEFAULT_HOME, AsJson, Home, Shop, client_cli, merchant_folder
from handbill.errors import HandbillError, InputError

DEFAULT_URL: Final = "http://127.0.0.1:8000"
FEW_KNOWN: Final = 0.5


@client_cli.command("feedback")
def feedback(
    *,
    shop: Shop = "",
    url: Annotated[str, typer.Option(envvar="HANDBILL_URL", help="The service.")] = DEFAULT_URL,
    key: Annotated[str, typer.Option(envvar="HANDBILL_API_KEY", help="Your API key.")] = "",
    shoppers: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="CSV (key,user): whom the keys you sent stand for."),
    ] = None,
    as_json: AsJson = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Fetch this shop's feedback from the service, for its next private rounds.

    All of it each time, so that what was deleted there is gone here. A running trainer reads it
    when it is started again.
    """
    from handbill.clients.feedback import (
        FEEDBACK_FILE,
        read_feedback,
        read_shopper_keys,
        write_feedback,
    )
    from handbill.clients.merchant import Merchant
    from handbill.clients.shoppers import load_own_shop

    folder = merchant_folder(home, shop)
    merchant = Merchant.load(folder)
    names = read_shopper_keys(shoppers) if shoppers else None
    file = folder / FEEDBACK_FILE
    write_feedback(file, _named(_fetch(url, _key(key, folder)), names))
    shop_data = load_own_shop(merchant)
    found = read_feedback(file, shop_data.info.scenarios)
    users = set(shop_data.by_user)
    met = [one for rows in found.by_user.values() for one in rows]
    known = sum(user in users for user in found.by_user)
    facts: dict[str, Any] = {
        "shop": folder.name,
        "file": str(file),
        "events": found.events,
        "without_text": found.without_text,
        "unusable": found.unusable,
        "shoppers": len(found.by_user),
        "known_shoppers": known,
        "copies": len(met),
        "clicked": sum(one.clicked for one in met),
        "bought": sum(one.bought for one in met),
        "pairs": sum(len(found.rows(user, "preference")) for user in found.by_user),
    }
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    typer.echo(
        f"{facts['events']} events of {facts['shoppers']} shoppers, {known} of them known to the "
        f"shop: {facts['copies']} pieces of copy met, {facts['clicked']} clicked, "
        f"{facts['bought']} bought from, {facts['pairs']} pairs"
    )
    if found.without_text:
        typer.echo(
            f"warning: {found.without_text} events are on copy whose text was not kept; ask for "
            f'copy with "feedback": true',
            err=True,
        )
    if known < FEW_KNOWN * len(found.by_user):
        typer.echo(
            "warning: few of these shoppers are in the shop's rows. One shopper under two names "
            "counts as two, and is protected less: send the ids of your rows, or name --shoppers",
            err=True,
        )
    typer.echo(f"in {file}; start the client again to train on it (feedback = {merchant.feedback})")


def _key(key: str, folder: Path) -> str:
    file = folder / "api_key"
    if key:
        return key
    if not file.is_file():
        raise InputError(f"no API key: give --key or HANDBILL_API_KEY, or put it into {file}")
    return file.read_text().strip()


def _fetch(url: str, key: str) -> Iterator[dict[str, Any]]:
    """All events, page by page."""
    import httpx

    address = url.rstrip("/") + "/v1/events"
    headers = {"Authorization": f"Bearer {key}"}
    after = 0
    with httpx.Client(headers=headers, timeout=60, trust_env=False) as client:
        while True:
            try:
                answer = client.get(address, params={"after": after, "limit": 1000})
                page = answer.json()
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise InputError(f"{address}: {error}; does the service run there?") from error
            except ValueError as error:
                raise InputError(f"{address}: is not a handbill service") from error
            if answer.is_error:
                message = page.get("error", {}).get("message", "refused")
                raise HandbillError(f"{address}: {answer.status_code}: {message}")
            yield from page["data"]
            if page["next"] is None:
                return
            after = page["next"]


def _named(
    events: Iterator[dict[str, Any]], names: dict[str, str] | None
) -> Iterator[dict[str, Any]]:
    """Events under the shop's own ids of its shoppers.

    Raises:
        InputError: A key is not in the file: its shopper would count as another one.
    """
    for event in events:
        if names is not None:
            if event["shopper"] not in names:
                raise InputError(
                    "--shoppers: an event has a key that is not in the file; add all keys you sent"
                )
            yield event | {"shopper": names[event["shopper"]]}
        else:
            yield event

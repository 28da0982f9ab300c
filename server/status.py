"""What an operator asks first: does it run, who is there, what is it doing, what is served."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table

from handbill.server.certificates import expires_at
from handbill.server.cohort import left_out
from handbill.server.records import still_published
from handbill.server.registry import open_registry
from handbill.server.runs import standing
from handbill.server.settings import ServerSettings
from handbill.server.superlink import SuperLink

SOON_DAYS: Final = 30  # a certificate that expires sooner is worth a word


def server_status(home: Path) -> dict[str, Any]:
    """Facts of now about the server in ``home``.

    Raises:
        MissingError: There is none.
    """
    settings = ServerSettings.load(home)
    registry = open_registry(home)
    try:
        with registry.database.begin() as uow:
            merchants, rounds, runs = uow.merchants.all(), uow.rounds.all(), uow.rounds.runs()
            conduct, lease = uow.rounds.conduct(), uow.leases.get()
            published = still_published(uow.channels.history(""))
    finally:
        registry.database.close()
    superlink = SuperLink(home, settings)
    answers = superlink.healthy()
    online = superlink.online() if answers else set()
    away = left_out(
        rounds, conduct, run=runs[-1].id if runs else "", after=settings.quarantine_after
    )
    expires = expires_at(home / "certificates")
    facts: dict[str, Any] = {
        "address": settings.address,
        "answers": answers,
        "certificate_days": (expires - datetime.now(UTC)).days if expires else None,
        "merchants": [
            {"id": m.id, "name": m.name, "connected": m.id in online, "quarantined": m.id in away}
            for m in merchants
        ],
        "coordinator": lease.holder if lease else "",
        "served_to_everyone": published[-1] if published else "",
        "last_run": None,
    }
    if runs:
        last = runs[-1]
        facts["last_run"] = {
            "id": last.id,
            "status": last.status,
            "reason": last.reason,
            "rounds": {stage: list(counts) for stage, counts in standing(last, rounds).items()},
        }
    return facts


def as_table(facts: dict[str, Any]) -> RenderableType:
    """The facts for people."""
    about = Table.grid(padding=(0, 2))
    about.add_row(
        "SuperLink", f"{'answers' if facts['answers'] else 'silent'} on {facts['address']}"
    )
    if (days := facts["certificate_days"]) is not None:
        remedy = "; renew it: handbill server renew" if days < SOON_DAYS else ""
        about.add_row("certificate", f"good for {days} days{remedy}")
    about.add_row("coordinator", facts["coordinator"] or "none: nothing is being trained")
    if run := facts["last_run"]:
        rounds = ", ".join(f"{stage} {done}/{of}" for stage, (done, of) in run["rounds"].items())
        about.add_row("last run", f"{run['id']} {run['status']}: {rounds}")
        if run["reason"]:
            about.add_row("", f"{run['reason']}; go on: handbill server train --run {run['id']}")
    about.add_row("served", facts["served_to_everyone"] or "nothing is published")
    merchants = Table("merchant", "name", "connected", "asked")
    for merchant in facts["merchants"]:
        merchants.add_row(
            merchant["id"],
            merchant["name"],
            "yes" if merchant["connected"] else "no",
            "no: in quarantine" if merchant["quarantined"] else "yes",
        )
    return Group(about, merchants)

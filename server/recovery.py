"""What a crash may have left half done in a registry, put right when a coordinator starts."""

import logging
from dataclasses import asdict, dataclass, replace

from handbill.generator.artifacts import utc_now
from handbill.server.audit import removed
from handbill.server.registry import Registry

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """What :func:`recover` put right."""

    orphans: tuple[str, ...]
    abandoned: tuple[str, ...]
    channels: tuple[str, ...]


def recover(registry: Registry, *, actor: str = "server") -> Recovery:
    """Remove folders without a row, close open attempts, write channels that lag their row.

    Whoever opened an attempt that is closed here cannot commit it any more. An artifact that was
    removed on purpose and whose files are still there counts as an orphan.
    """
    store = registry.store
    with registry.database.begin() as uow:
        open_rounds = [r for r in uow.rounds.all() if r.status == "open"]
        for attempt in open_rounds:
            uow.rounds.close(replace(attempt, status="abandoned", closed_at=utc_now()))
            uow.audit.append(
                actor=actor,
                action="round.abandon",
                object_=attempt.name,
                result="open when the server started",
            )
        gone = removed(uow.audit.all())
        orphans = [d for d in store if d in gone or uow.artifacts.get(d) is None]
        for digest in orphans:
            store.remove(digest)
        store.clean()
        tenants = uow.channels.tenants()
        rewritten = [t for t in tenants if registry.outbox.write_channel(uow, t)[1]]
        uow.commit()
        registry.outbox.write_head(uow)
    found = Recovery(
        orphans=tuple(orphans),
        abandoned=tuple(r.name for r in open_rounds),
        channels=tuple(rewritten),
    )
    log.info("registry_recovered", extra=asdict(found))
    return found

"""What is taken out of a registry for good: a merchant, superseded adapters, a key-encryption key.

Rows of the signed history stay, since others hold its head: who was a member, what was trained when
and with what promise. What goes is what could be read: the adapter that was learnt from one
merchant's shoppers. Its key is destroyed, so that every copy of it is noise; in a backup that holds
the key too, once the key-encryption key was renewed.

Each step may be interrupted and the whole done again. All writing of keys happens under the
database's one-writer lock.
"""

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

from handbill.errors import InputError, MissingError
from handbill.generator.artifacts import check_tenant
from handbill.privacy.faults import faultpoint
from handbill.server.audit import forgotten, removed
from handbill.server.records import Artifact, still_published
from handbill.server.registry import Registry

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgotten:
    """What :func:`forget` did, in all its attempts together.

    Attributes:
        adapters: Digests of the merchant's own adapters; none can be opened any more.
        rounds: Committed rounds of everybody's model that its updates are part of; they stay.
    """

    merchant: str
    adapters: tuple[str, ...]
    rounds: int


def forget(
    registry: Registry, merchant: str, *, wait_s: float, actor: str = "operator"
) -> Forgotten:
    """Take a merchant off the roster and destroy what was learnt for it alone.

    Args:
        registry: Where it is.
        merchant: Its id.
        wait_s: Between serving it the global model and destroying its key, so that requests
            already on their way to its adapter can still load it.
        actor: Who forgets, for the audit chain.

    Raises:
        MissingError: Nobody of that id was ever here.
    """
    check_tenant(merchant)
    with registry.database.begin() as uow:
        known = {m.id: m for m in uow.merchants.all(revoked=True)}.get(merchant)
        history = uow.channels.history(merchant)
    if not (known or history or merchant in registry.vault):
        raise MissingError(f"no merchant {merchant!r} was ever here")
    if known and not known.revoked_at:
        registry.revoke(merchant, actor=actor)  # first: nothing of it is taken any more
    faultpoint("forget.revoked")
    if history:
        registry.channels.withdraw(merchant, actor=actor)
        if merchant in registry.vault:
            time.sleep(wait_s)
    faultpoint("forget.withdrawn")
    with registry.database.begin() as uow:
        registry.vault.destroy(merchant)
        faultpoint("forget.destroyed")
        own = [a for a in uow.artifacts.all() if a.tenant == merchant]
        rounds = uow.rounds.all()
        if merchant not in forgotten(uow.audit.all()):
            if known:
                uow.merchants.put(replace(uow.merchants.get(merchant), name="", node_key=""))
            uow.invitations.remove(merchant)
            registry.record(uow, actor, "merchant.forget", merchant, f"{len(own)} adapters")
    faultpoint("forget.recorded")
    _remove(registry, own, reason=f"{merchant} was forgotten", actor=actor)
    log.info("merchant_forgotten", extra={"merchant": merchant})
    return Forgotten(
        merchant=merchant,
        adapters=tuple(a.digest for a in own),
        rounds=sum(bool(r.aggregate) and merchant in r.survivors for r in rounds),
    )


def superseded(registry: Registry, *, keep: int) -> list[Artifact]:
    """Return tenants' own adapters that neither serve nor are near to.

    Kept are, for each tenant, the newest ``keep`` versions, and what is served with what a
    roll-back would serve next, ``keep`` in all. Global models are never in the list: every later
    model grew from them.

    Raises:
        InputError: ``keep`` is less than 1.
    """
    if keep < 1:
        raise InputError(f"keep={keep}: at least 1, since what is served must stay")
    with registry.database.begin() as uow:
        own = [a for a in uow.artifacts.all() if a.kind == "tenant"]
        kept = set[str]()
        for tenant in {a.tenant for a in own}:
            kept.update([a.digest for a in own if a.tenant == tenant][-keep:])
            history = uow.channels.history(tenant)
            kept.update(still_published(history)[-keep:])
            kept.update(step.candidate for step in history[-1:])
    return [a for a in own if a.digest not in kept and a.digest in registry.store]


def prune(registry: Registry, *, keep: int, actor: str = "operator") -> list[Artifact]:
    """Remove the files of what is :func:`superseded`; their rows and manifests stay."""
    found = superseded(registry, keep=keep)
    _remove(registry, found, reason=f"superseded, {keep} kept", actor=actor)
    return found


def rotate_kek(registry: Registry, *, actor: str = "operator") -> int:
    """Renew the key-encryption key; returns how many tenant keys were wrapped again."""
    with registry.database.begin() as uow:
        count = registry.vault.rotate()
        registry.record(uow, actor, "kek.rotate", "vault", f"{count} tenant keys")
    return count


def _remove(registry: Registry, found: Iterable[Artifact], *, reason: str, actor: str) -> None:
    """Write that they are removed, then remove their files."""
    for artifact in found:
        with registry.database.begin() as uow:
            if artifact.digest not in removed(uow.audit.all()):
                registry.record(uow, actor, "artifact.remove", artifact.digest, reason)
            faultpoint("artifact.remove.recorded")
            registry.store.remove(artifact.digest)

"""What is served to whom: every channel's steps, and the signed file made of the last.

The row is the truth, the signed channel file is written from it and written again whenever they
differ.
"""

from collections.abc import Callable
from typing import Any

from handbill.errors import ArtifactError, InputError, MissingError
from handbill.generator.artifacts import Manifest, check_tenant, utc_now
from handbill.generator.channels import Channel
from handbill.generator.model_specs import held
from handbill.server.outbox import Outbox
from handbill.server.records import Publication, still_published
from handbill.server.repository import Database, UnitOfWork


class Channels:
    """The channels of a registry, each of one tenant, or of everybody (tenant ``""``).

    Args:
        database: The registry's.
        outbox: Writes the signed files.
        verified: Checks an artifact's files and signature.
        record: Adds an entry to the audit chain and commits the unit of work: (unit of work,
            actor, action, object, result).
    """

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        *,
        verified: Callable[[str], Manifest],
        record: Callable[[UnitOfWork, str, str, str, str], None],
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._verified = verified
        self._record = record

    def publish(
        self, tenant: str, digest: str, *, percent: int = 100, actor: str = "operator"
    ) -> Channel:
        """Serve an artifact to one tenant, or to everybody (tenant ``""``).

        Publishing what is served already changes nothing but the file, if that was damaged.

        Args:
            tenant: To whom.
            digest: What.
            percent: Of the requests; below 100 the rest is served what it was. Publishing it
                again with another share, or with all, goes on from there.
            actor: Who does it, for the audit chain.

        Raises:
            InputError: the share is not in [1, 100].
            MissingError: no such artifact.
            ArtifactError: it does not verify, or belongs to another tenant, or to one that is
                revoked, or is served already and so cannot be tried beside itself.
        """
        if not 1 <= percent <= 100:
            raise InputError(f"percent={percent} not in [1, 100]")
        with self._database.begin() as uow:
            artifact = uow.artifacts.get(digest)
            if artifact is None:
                raise MissingError(f"no artifact {digest} in this registry")
            if artifact.tenant not in {"", tenant}:
                raise ArtifactError(
                    f"{digest}: is {artifact.tenant}'s own; it can be served to nobody else"
                )
            if held(artifact.manifest["files"]) == "interest":
                raise ArtifactError(
                    f"{digest}: is a model of interest; the service writes no copy with it, merchants "
                    f"have it from its run"
                )
            refuse_revoked(uow, artifact.tenant)
            self._verified(digest)
            history = uow.channels.history(tenant)
            now = history[-1] if history else None
            served, tried = (now.served, now.candidate) if now else ("", "")
            if percent < 100:
                if served == digest:
                    raise ArtifactError(f"{digest}: is served already; nothing to compare it with")
                self._step(uow, tenant, digest, "canary", actor, stable=served, percent=percent)
            elif served != digest or tried:
                self._step(uow, tenant, digest, "publish", actor)
        with self._database.begin() as uow:
            return self._outbox.write_channel(uow, tenant)[0]

    def rollback(self, tenant: str = "", *, actor: str = "operator") -> Channel:
        """Serve again what was published before; going back twice goes two steps back.

        While an artifact is tried on a share of the requests, the first step back ends that.

        Raises:
            MissingError: nothing was published before what is served now.
        """
        with self._database.begin() as uow:
            history = uow.channels.history(tenant)
            published = still_published(history)
            if history and history[-1].candidate:
                tried = history[-1]
                self._step(uow, tenant, tried.digest, "canary", actor, stable=tried.stable)
            elif len(published) < 2:
                raise MissingError(f"channel {tenant or 'global'}: nothing was published before")
            else:
                self._verified(published[-2])
                self._step(uow, tenant, published[-2], "rollback", actor)
        with self._database.begin() as uow:
            return self._outbox.write_channel(uow, tenant)[0]

    def withdraw(self, tenant: str, *, actor: str = "operator") -> Channel:
        """Serve a tenant what everyone is served, from now on; there is no way back past this.

        Withdrawing twice is the same as once.

        Raises:
            MissingError: the tenant has no channel.
        """
        with self._database.begin() as uow:
            history = uow.channels.history(check_tenant(tenant))
            if not history:
                raise MissingError(f"channel {tenant}: nothing was ever published to it")
            if now := history[-1].served or history[-1].candidate:
                self._step(uow, tenant, now, "withdraw", actor)
        with self._database.begin() as uow:
            return self._outbox.write_channel(uow, tenant)[0]

    def _step(
        self,
        uow: UnitOfWork,
        tenant: str,
        digest: str,
        action: Any,
        actor: str,
        **trial: Any,
    ) -> None:
        if tenant:
            check_tenant(tenant)
        step = Publication(
            tenant=tenant,
            serial=len(uow.channels.history(tenant)) + 1,
            digest=digest,
            action=action,
            published_at=utc_now(),
            **trial,
        )
        uow.channels.add(step)
        self._record(uow, actor, f"channel.{action}", step.name, step.audited)


def refuse_revoked(uow: UnitOfWork, tenant: str) -> None:
    """Nothing of a revoked tenant's own is taken or published.

    Raises:
        ArtifactError: It is revoked.
    """
    if any(m.id == tenant and m.revoked_at for m in uow.merchants.all(revoked=True)):
        raise ArtifactError(f"{tenant}: is revoked; no adapter of its own is taken or published")

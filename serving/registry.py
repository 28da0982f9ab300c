"""The read side of the registry: which verified artifact each tenant is served.

A tenant's own channel decides, else everybody's (the global model), else the base model. A channel
that was withdrawn decides nothing. An artifact becomes routable only after its signature, every
file's digest, the base model it was trained on and its tensors were checked. A publication that
fails keeps what was served before.
A channel's serial never goes back, also over restarts: who can write the folder but not sign
cannot bring an old version back.
"""

import hashlib
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from handbill.errors import ArtifactError, HandbillError
from handbill.generator.adapters import Adapter
from handbill.generator.artifacts import (
    ArtifactStore,
    Manifest,
    check_tenant,
    load_public_key,
    read_verified,
)
from handbill.generator.base_models import BaseModel
from handbill.generator.channels import GLOBAL_CHANNEL, Channel, read_channel
from handbill.generator.vault import Vault, open_adapter

log = logging.getLogger(__name__)

PUBLISHER_FILE: Final = "publisher.pub"


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """What a tenant is served: an artifact's digest, or the base model's.

    Attributes:
        adapter: Digest of the artifact; empty for the base model.
        digest: What answers name: the artifact's digest, or the base model's.
        kind: ``base``, ``global`` or ``tenant``.
        parent: Digest of the global artifact a tenant's own was trained on.
        prompts: Digest of what a tenant's own was trained to be asked with; empty for the shipped scenarios.
    """

    adapter: str
    digest: str
    kind: str
    version: int
    parent: str = ""
    prompts: str = ""

    @property
    def fingerprint(self) -> str:
        """Names what answered, such as ``tenant-v3-1f2e3d4c-on-5a6b7c8d``."""
        name = f"{self.kind}-v{self.version}-{_short(self.digest)}"
        return f"{name}-on-{_short(self.parent)}" if self.parent else name


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A candidate that a share of a channel's requests is served.

    Attributes:
        channel: Its name.
        serial: Of the publication.
        stable: Digest of what is served beside it.
        percent: The share.
    """

    channel: str
    serial: int
    candidate: Route
    percent: int
    stable: str = ""

    def takes(self, who: str) -> bool:
        """Whether someone is served the candidate: always the same, and still so when the share grows."""
        named = f"{self.channel}\n{self.candidate.digest}\n{who}".encode()
        return int.from_bytes(hashlib.sha256(named).digest()[:8]) % 100 < self.percent


class Halts(Protocol):
    """Knows which trials were ended before the operator did."""

    def halted(self, trial: Trial) -> bool:
        """Whether this one was."""
        ...


class Marks(Protocol):
    """Remembers the newest serial and digest seen of every channel."""

    def read(self, channel: str) -> tuple[int, str]:
        """Serial and digest; (0, "") when never seen."""
        ...

    def write(self, channel: str, serial: int, digest: str) -> None:
        """Remember, durably."""
        ...


class MemoryMarks:
    """Marks that last as long as the process."""

    def __init__(self) -> None:
        self._marks: dict[str, tuple[int, str]] = {}

    def read(self, channel: str) -> tuple[int, str]:
        """See :class:`Marks`."""
        return self._marks.get(channel, (0, ""))

    def write(self, channel: str, serial: int, digest: str) -> None:
        """See :class:`Marks`."""
        self._marks[channel] = (serial, digest)


class Verifier:
    """Reads artifacts of one registry, every check first.

    The publisher's public key is read once and kept: a key file that is changed later changes
    nothing until the operator starts the service again. Keys of tenants are read anew for each
    artifact: one that was destroyed opens nothing more.

    Args:
        root: The registry's folder.
        base: The base model of this service.
        kek: See :class:`~handbill.generator.vault.Vault`.
    """

    def __init__(self, root: Path, base: BaseModel, *, kek: str = "") -> None:
        self.root = root
        self.base = base
        self._vault = Vault(root, kek)
        self._key: Ed25519PublicKey | None = None

    @property
    def key(self) -> Ed25519PublicKey | None:
        """The publisher's public key; None before anything was published."""
        if self._key is None and (self.root / PUBLISHER_FILE).is_file():
            self._key = load_public_key(self.root / PUBLISHER_FILE)
        return self._key

    def read(self, digest: str) -> tuple[Manifest, Adapter]:
        """Read one artifact.

        Raises:
            ArtifactError: It is missing, changed, not signed by the publisher, of another base
                model, not a plain LoRA adapter, or locked with a key that is gone.
            MissingError: It is locked, and there is no key-encryption key.
            InputError: It is locked, and the key-encryption key is another one.
        """
        store = ArtifactStore(self.root / "store")
        if self.key is None or digest not in store:
            raise ArtifactError(f"{digest}: not in the registry's store")
        manifest, files = read_verified(store.path(digest), self.key)
        if manifest.digest != digest:
            raise ArtifactError(f"{digest}: its folder holds {manifest.digest}")
        if manifest.base_digest != self.base.digest:
            raise ArtifactError(
                f"{digest}: trained on base {manifest.base_name} ({manifest.base_digest}), this "
                f"service runs {self.base.name} ({self.base.digest})"
            )
        return manifest, open_adapter(store.path(digest), manifest, self._vault, files)

    def adapter(self, digest: str) -> Adapter:
        """Read one artifact's tensors; what an engine is given to load with."""
        return self.read(digest)[1]


class Registry:
    """Routes of all tenants, kept fresh by :meth:`refresh`.

    Args:
        verifier: Reads the registry.
        marks: Where the newest serials are remembered.
        halts: Which trials are over, looked up at every refresh; none if not given.
    """

    def __init__(
        self, verifier: Verifier, marks: Marks | None = None, halts: Halts | None = None
    ) -> None:
        self._verifier = verifier
        self._root = verifier.root
        self._marks = marks or MemoryMarks()
        self._routes: dict[str, Route] = {}  # by channel name; replaced, never changed in place
        self._trials: dict[str, Trial] = {}  # the same
        self._halts = halts
        self._halted = frozenset[str]()  # channels whose trial is over
        self._stamps: dict[str, tuple[int, int, int]] = {}  # of channel files already followed
        self._complaints: dict[str, str] = {}
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self.refused = 0
        self.refreshed_at = 0.0

    def route(self, tenant: str) -> Route:
        """What a tenant is served now."""
        own = self._routes.get(check_tenant(tenant))
        return own or self._routes.get(GLOBAL_CHANNEL) or self._base_route()

    def choices(self, tenant: str, who: str) -> list[Route]:
        """What a tenant is served now and may ask for by name; the first without one.

        Args:
            tenant: Whose.
            who: The request is made for; the same is served the same while a candidate is tried.
        """
        stable = self.route(tenant)
        name = tenant if tenant in self._routes or tenant in self._trials else GLOBAL_CHANNEL
        trial = self._trials.get(name)
        if trial is None or name in self._halted:
            return [stable]
        both = [trial.candidate, stable]
        return both if trial.takes(who) else both[::-1]

    def trials(self) -> list[Trial]:
        """Candidates that are tried now."""
        return [trial for trial in self._every_trial() if trial.channel not in self._halted]

    def variant(self, tenant: str, adapter: str) -> Route | None:
        """One of what a tenant could be served now, for an experiment that compares them.

        Args:
            tenant: Whose.
            adapter: ``own``, ``global``, ``base``, or the digest of one of these.

        Returns:
            None when there is no such one now: an experiment goes no further back than what is
            published.
        """
        there = {
            "own": self._routes.get(check_tenant(tenant)),
            "global": self._routes.get(GLOBAL_CHANNEL),
            "base": self._base_route(),
        }
        by_digest = {route.digest: route for route in there.values() if route is not None}
        return there.get(adapter) or by_digest.get(adapter)

    def refresh(self) -> None:
        """Look at every channel once; what fails keeps its last good version."""
        key = self._verifier.key
        if key is not None:
            for name in self._channel_names():
                try:
                    self._refresh_channel(name, key)
                except HandbillError as error:
                    self._complain(name, str(error))
                else:
                    self._complaints.pop(name, None)
        if self._halts is not None:
            trials = self._every_trial()
            self._halted = frozenset(t.channel for t in trials if self._halts.halted(t))
        self.refreshed_at = time.monotonic()

    def start(self, poll_s: float) -> None:
        """Refresh now and then every ``poll_s`` seconds, in a thread of its own."""
        self.refresh()
        self._thread = threading.Thread(
            target=self._poll, args=(poll_s,), name="registry", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop refreshing."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()

    def _poll(self, poll_s: float) -> None:
        while not self._closing.wait(poll_s):
            try:
                self.refresh()
            except Exception:  # such as a full disk: served versions stay, the next look may work
                log.exception("registry_refresh_failed")

    def _channel_names(self) -> Iterator[str]:
        folder = self._root / "channels"
        if folder.is_dir():
            yield from sorted(file.stem for file in folder.glob("*.json"))

    def _refresh_channel(self, name: str, key: Ed25519PublicKey) -> None:
        state = (self._root / "channels" / f"{name}.json").stat()
        stamp = (state.st_mtime_ns, state.st_size, state.st_ino)
        if self._stamps.get(name) == stamp:
            return
        channel = read_channel(
            self._root, "" if name == GLOBAL_CHANNEL else check_tenant(name), key
        )
        if channel is None:
            return
        serial, digest = self._marks.read(name)
        if channel.serial < serial or (channel.serial == serial and channel.digest != digest):
            raise ArtifactError(f"channel {name}: serial {channel.serial} after {serial} refused")
        routes = {k: route for k, route in self._routes.items() if k != name}
        if channel.digest:
            routes[name] = self._verified_route(channel, channel.digest)
        trials = {k: trial for k, trial in self._trials.items() if k != name}
        if channel.candidate:
            trials[name] = Trial(
                channel=name,
                serial=channel.serial,
                candidate=self._verified_route(channel, channel.candidate),
                percent=channel.percent,
            )
        self._marks.write(name, channel.serial, channel.digest)
        self._stamps[name] = stamp
        self._routes, self._trials = routes, trials
        log.info(
            "channel_served",
            extra={"channel": name, "artifact": channel.digest, "serial": channel.serial},
        )

    def _verified_route(self, channel: Channel, digest: str) -> Route:
        manifest, _ = self._verifier.read(digest)
        if manifest.kind == "tenant" and manifest.tenant != channel.tenant:
            raise ArtifactError(f"{digest}: belongs to another tenant than its channel")
        return Route(
            adapter=digest,
            digest=digest,
            kind=manifest.kind,
            version=manifest.version,
            parent=manifest.parent if manifest.kind == "tenant" else "",
            prompts=manifest.prompts,
        )

    def _every_trial(self) -> list[Trial]:
        everyone = self._routes.get(GLOBAL_CHANNEL) or self._base_route()
        return [
            replace(trial, stable=self._routes.get(name, everyone).digest)
            for name, trial in self._trials.items()
        ]

    def _complain(self, name: str, reason: str) -> None:
        if self._complaints.get(name) != reason:  # once, not at every look
            self._complaints[name] = reason
            self.refused += 1
            log.error("publication_refused", extra={"channel": name, "reason": reason})

    def _base_route(self) -> Route:
        return Route(adapter="", digest=self._verifier.base.digest, kind="base", version=0)


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:8]

"""Signed pointers to artifacts: what one tenant is served now."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from handbill.errors import ArtifactError
from handbill.generator.artifacts import canonical_json, check_tenant, read_small, sync_to_disk

CHANNEL_LABEL: Final = b"handbill/v1/channel\0"
GLOBAL_CHANNEL: Final = "_global"


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """What one tenant is served ("" is everyone's default); ``serial`` only ever rises.

    No ``digest`` means none of its own: the tenant is served what everyone is. A ``candidate`` is
    tried on ``percent`` of the tenant's requests meanwhile.
    """

    tenant: str
    digest: str
    serial: int
    published: str
    candidate: str = ""
    percent: int = 0


def write_channel(root: Path, channel: Channel, key: Ed25519PrivateKey) -> None:
    """Sign a channel and put it in place in one rename."""
    folder = root / "channels"
    folder.mkdir(parents=True, exist_ok=True)
    body = asdict(channel)
    signature = key.sign(CHANNEL_LABEL + canonical_json(body)).hex()
    target = _channel_path(root, channel.tenant)
    temporary = target.with_suffix(".new")
    temporary.write_bytes(canonical_json({"channel": body, "signature": signature}))
    sync_to_disk(temporary)
    temporary.rename(target)
    sync_to_disk(folder)


def read_channel(root: Path, tenant: str, public_key: Ed25519PublicKey) -> Channel | None:
    """Read a channel; None when there is none.

    Raises:
        ArtifactError: Its signature is not the publisher's, or it is another tenant's.
    """
    path = _channel_path(root, tenant)
    if not path.is_file():
        return None
    try:
        document = json.loads(read_small(path))
        body: Mapping[str, Any] = document["channel"]
        public_key.verify(
            bytes.fromhex(document["signature"]), CHANNEL_LABEL + canonical_json(body)
        )
        channel = Channel(**body)
    except (ValueError, KeyError, TypeError, InvalidSignature) as error:
        raise ArtifactError(f"{path}: not signed by this registry's publisher") from error
    if channel.tenant != tenant:
        raise ArtifactError(f"{path}: is the channel of another tenant")
    return channel


def _channel_path(root: Path, tenant: str) -> Path:
    name = check_tenant(tenant) if tenant else GLOBAL_CHANNEL
    return root / "channels" / f"{name}.json"

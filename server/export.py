"""A model out of the registry, for other programs: a plain folder in PEFT's layout."""

import shutil
import tempfile
from pathlib import Path

from handbill.errors import InputError
from handbill.generator.adapters import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE
from handbill.generator.model_specs import held
from handbill.generator.vault import open_weights
from handbill.server.registry import Registry


def export(registry: Registry, digest: str, folder: Path) -> None:
    """Verify an artifact and write its model in plain, whole or not at all.

    What was a tenant's alone is readable by anybody who gets the folder.

    Args:
        registry: Where it is.
        digest: Its name.
        folder: Made here; PEFT, vLLM and LoRAX load an adapter, ``handbill recommend`` a model of interest.

    Raises:
        InputError: The folder is there.
        ArtifactError: It does not verify, or its tenant's key is gone.
    """
    if folder.exists():
        raise InputError(f"{folder}: is there already; name a new folder")
    source = registry.store.path(digest)
    manifest = registry.verified(digest)
    interest = held(manifest.files) == "interest"
    weights = b"" if interest else open_weights(source, manifest, registry.vault)
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".exporting-"))  # mode 0700
    try:
        for name in manifest.files if interest else (CONFIG_FILE, CARD_FILE):
            shutil.copyfile(source / name, draft / name)
        if not interest:
            (draft / WEIGHTS_FILE).write_bytes(weights)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)

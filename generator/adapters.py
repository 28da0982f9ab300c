"""LoRA adapters: what is trained, in PEFT's own file layout.

An adapter changes a frozen weight W into W + s B A with s = alpha / rank (Hu et al. 2021,
arXiv:2106.09685). Here A is a fixed projection drawn from a public seed and only B is trained
(FFA-LoRA, Sun et al. 2024, arXiv:2403.12313): the change is then linear in B, so averaging B
over merchants averages B A exactly, noise is never multiplied by noise, and half as much is
sent. The files are ordinary LoRA: PEFT, vLLM and LoRAX load them.

Shapes: A (rank, in), B (out, rank).
"""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save

from handbill.errors import ArtifactError, InputError
from handbill.generator.base_models import BaseModel

Tensors = dict[str, np.ndarray[Any, np.dtype[np.float32]]]
Shape = tuple[int, int]

CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"
LOCKED_FILE: Final = "adapter_model.safetensors.locked"
CARD_FILE: Final = "README.md"
PREFIX: Final = "base_model.model."
ALL_LINEAR: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

_MAX_HEADER_BYTES: Final = 256 * 1024
_MAX_FILE_BYTES: Final = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSpec:
    """Which weights of a base model an adapter changes, and its fixed projection.

    Attributes:
        layers: Indices of the transformer layers, rising.
        seed: Public seed of every A.
    """

    rank: int = 8
    alpha: float = 16.0
    target_modules: tuple[str, ...] = ALL_LINEAR
    layers: tuple[int, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= 256:
            raise InputError(f"rank={self.rank} not in [1, 256]")
        if not self.layers or list(self.layers) != sorted(set(self.layers)):
            raise InputError(f"layers={self.layers} must be rising and not empty")
        if not self.target_modules:
            raise InputError("target_modules is empty")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "rank": self.rank,
            "alpha": self.alpha,
            "target_modules": list(self.target_modules),
            "layers": list(self.layers),
            "seed": self.seed,
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "AdapterSpec":
        """Read what :meth:`to_dict` wrote."""
        return cls(
            rank=int(fields["rank"]),
            alpha=float(fields["alpha"]),
            target_modules=tuple(fields["target_modules"]),
            layers=tuple(int(layer) for layer in fields["layers"]),
            seed=int(fields["seed"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """An adapter read from disk, checked; its tensors are read-only."""

    rank: int
    alpha: float
    tensors: Tensors

    @property
    def scaling(self) -> float:
        """The factor s of s B A."""
        return self.alpha / self.rank


def top_layers(base: BaseModel, count: int) -> tuple[int, ...]:
    """Indices of the ``count`` layers nearest to the output (all of them when count is 0)."""
    n = int(json.loads((base.path / "config.json").read_text())["num_hidden_layers"])
    return tuple(range(n - count if 0 < count < n else 0, n))


def trained_shapes(spec: AdapterSpec, base: BaseModel) -> dict[str, Shape]:
    """Name and shape (out, rank) of every trained tensor, in sorted order.

    Raises:
        InputError: The base model has no such layer or module.
    """
    return {
        f"{PREFIX}{module}.lora_B.weight": (out, spec.rank)
        for module, (out, _) in _modules(spec, base).items()
    }


def fixed_projections(spec: AdapterSpec, base: BaseModel) -> Tensors:
    """Every A of an adapter: Gaussian, variance 1 / in, from the spec's public seed."""
    tensors: Tensors = {}
    for module, (_, width) in _modules(spec, base).items():
        label = hashlib.sha256(f"handbill/v1/lora-a/{spec.seed}/{module}".encode()).digest()
        draws = np.random.Generator(np.random.PCG64(int.from_bytes(label, "big")))
        scale = 1.0 / np.sqrt(width)
        values = (draws.standard_normal((spec.rank, width)) * scale).astype(np.float32)
        tensors[f"{PREFIX}{module}.lora_A.weight"] = values
    return tensors


def zero_update(spec: AdapterSpec, base: BaseModel) -> Tensors:
    """The untrained adapter: every B is zero, so the model is the base model."""
    return {n: np.zeros(shape, np.float32) for n, shape in trained_shapes(spec, base).items()}


def peft_config(spec: AdapterSpec, base_name: str) -> dict[str, Any]:
    """PEFT's ``adapter_config.json`` for a spec."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": spec.rank,
        "lora_alpha": spec.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(spec.target_modules),
        "layers_to_transform": list(spec.layers),
        "layers_pattern": "layers",
        "inference_mode": True,
    }


def write_adapter(
    folder: Path,
    *,
    spec: AdapterSpec,
    base: BaseModel,
    tensors: Tensors,
    card: str,
    lock: Callable[[bytes], bytes] | None = None,
) -> None:
    """Write an adapter in PEFT's layout, its weights locked if they are one tenant's.

    Args:
        folder: Made if it is not there.
        spec: What was trained.
        base: The base model it was trained on.
        tensors: Every B; the A's are added from the spec.
        card: The model card, Markdown.
        lock: Encrypts the weights, which then never are on the disk in plain
            (:meth:`handbill.generator.vault.Vault.lock`).

    Raises:
        ArtifactError: A tensor is missing, extra, of another shape or not finite.
    """
    check_tensors(tensors, trained_shapes(spec, base))
    folder.mkdir(parents=True, exist_ok=True)
    config = peft_config(spec, base.name)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (folder / CARD_FILE).write_text(card)
    whole = {**fixed_projections(spec, base), **tensors}
    weights = save({n: np.ascontiguousarray(whole[n]) for n in sorted(whole)})
    if lock is None:
        (folder / WEIGHTS_FILE).write_bytes(weights)
    else:
        (folder / LOCKED_FILE).write_bytes(lock(weights))


def check_tensors(tensors: Tensors, shapes: dict[str, Shape]) -> None:
    """Refuse tensors whose names, shapes or dtype differ from the schema, or that are not finite.

    Raises:
        ArtifactError: Naming the first tensor that is wrong.
    """
    if tensors.keys() != shapes.keys():
        wrong = sorted(tensors.keys() ^ shapes.keys())[0]
        state = "missing" if wrong in shapes else "unexpected"
        raise ArtifactError(f"tensor {wrong[:120]!r} is {state}")
    for name, value in tensors.items():
        if value.shape != shapes[name] or value.dtype != np.float32:
            raise ArtifactError(
                f"tensor {name}: {value.dtype} {value.shape}, expected float32 {shapes[name]}"
            )
        if not np.isfinite(value).all():
            raise ArtifactError(f"tensor {name}: holds NaN or infinity")


def read_adapter(folder: Path, *, files: Mapping[str, bytes] | None = None) -> Adapter:
    """Read an adapter in PEFT's layout, whoever wrote it.

    The safetensors header is checked before anything is allocated: size caps, no duplicate
    names, only LoRA tensors in float32, each A with its B and a matching rank.

    Args:
        folder: Where it lies.
        files: Its configuration and weights, where they were read before or are locked in the
            folder (:func:`handbill.generator.vault.open_adapter`).

    Raises:
        ArtifactError: Naming the file and what is wrong with it.
    """
    file = folder / WEIGHTS_FILE
    try:
        config = json.loads(read_bounded(folder / CONFIG_FILE, files))
        kind = str(config.get("peft_type"))[:40]
        if kind != "LORA":
            raise ArtifactError(
                f"{folder / CONFIG_FILE}: peft_type {kind}: adapters of this kind are not trained "
                f"privately and not served; only LORA"
            )
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
        refused = [
            k for k in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern") if config.get(k)
        ]
        if refused or config.get("bias", "none") != "none":
            raise ArtifactError(f"{folder / CONFIG_FILE}: not a plain LoRA adapter {refused}")
        tensors = _tensors(read_bounded(file, files), file)
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        SafetensorError,
    ) as error:
        raise ArtifactError(f"{folder}: not a readable adapter ({error})") from error
    for name, value in tensors.items():
        other = (
            name.replace(".lora_A.", ".lora_B.")
            if ".lora_A." in name
            else name.replace(".lora_B.", ".lora_A.")
        )
        axis = 0 if ".lora_A." in name else 1
        if other == name or other not in tensors or value.ndim != 2 or value.shape[axis] != rank:
            raise ArtifactError(
                f"{file}: tensor {name[:120]!r} is not one half of a rank-{rank} pair"
            )
    return Adapter(rank=rank, alpha=alpha, tensors=tensors)


def read_bounded(file: Path, files: Mapping[str, bytes] | None = None) -> bytes:
    """The bytes of a file of an adapter, whole, if it is not absurdly large.

    Args:
        file: Its path.
        files: Files of its folder, if they were read before.

    Raises:
        ArtifactError: It is, or is empty, or cannot be read.
    """
    try:
        data = None if files is None else files.get(file.name, b"")
        size = file.stat().st_size if data is None else len(data)
        if not 8 < size <= _MAX_FILE_BYTES:
            raise ArtifactError(f"{file}: {size} bytes, over {_MAX_FILE_BYTES} or empty")
        return file.read_bytes() if data is None else data
    except OSError as error:
        raise ArtifactError(f"{file}: cannot be read ({error.strerror})") from error


def _tensors(data: bytes, file: Path) -> Tensors:
    """What a safetensors file holds; all numbers are looked at once, not tensor by tensor."""
    length = int.from_bytes(data[:8], "little")
    if not 2 <= length <= min(_MAX_HEADER_BYTES, len(data) - 8):
        raise ArtifactError(f"{file}: header of {length} bytes refused")
    pairs = json.loads(data[8 : 8 + length], object_pairs_hook=list)
    names = [name for name, _ in pairs if name != "__metadata__"]
    if len(set(names)) != len(names):
        raise ArtifactError(f"{file}: a tensor name stands twice in the header")
    tensors: Tensors = load(data)
    # The library takes no gaps: from the header to the end there are tensors and nothing else.
    wrong = [name for name, value in tensors.items() if value.dtype != np.float32]
    if not wrong and not np.isfinite(np.frombuffer(data, np.float32, offset=8 + length)).all():
        wrong = [name for name, value in tensors.items() if not np.isfinite(value).all()]
    if wrong:
        raise ArtifactError(f"{file}: tensor {wrong[0][:120]!r} is not finite float32")
    return tensors


def linear_shapes(base: BaseModel, names: Collection[str] = ALL_LINEAR) -> dict[str, Shape]:
    """Every linear layer of a base model that an adapter may change, with its (out, in).

    Args:
        base: The base model; the headers of its files are read.
        names: The last part of the layers' names.
    """
    shapes: dict[str, Shape] = {}
    for file in sorted(base.path.glob("*.safetensors")):
        with safe_open(file, framework="numpy") as weights:
            for name in weights.keys():  # noqa: SIM118 - safe_open is no mapping
                module = name.removesuffix(".weight")
                if module != name and module.rpartition(".")[2] in names:
                    out, width = weights.get_slice(name).get_shape()
                    shapes[module] = (out, width)
    return shapes


def _modules(spec: AdapterSpec, base: BaseModel) -> dict[str, Shape]:
    """Every adapted module of the base model, sorted, with its (out, in)."""
    shapes = linear_shapes(base, spec.target_modules)
    chosen = {}
    for layer in spec.layers:
        here = {m: s for m, s in shapes.items() if f".layers.{layer}." in m}
        if {m.rpartition(".")[2] for m in here} != set(spec.target_modules):
            raise InputError(
                f"base model {base.name}: layer {layer} lacks one of {', '.join(spec.target_modules)}"
            )
        chosen.update(here)
    return dict(sorted(chosen.items()))

"""What a run trains: an adapter of the base model, or the model of interest.

Rounds, secure sums, ledger, registry and audit see a form and named tensors either way. What differs
between the two, beside how they learn, is here.
"""

import json
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from handbill.errors import ArtifactError
from handbill.generator.adapters import (
    CARD_FILE,
    AdapterSpec,
    Tensors,
    check_tensors,
    read_adapter,
    read_bounded,
    trained_shapes,
    write_adapter,
)
from handbill.generator.artifacts import write_durably
from handbill.generator.base_models import BaseModel
from handbill.generator.interest_spec import InterestSpec

ModelSpec = AdapterSpec | InterestSpec
Trains = Literal["copy", "interest"]

SPEC_FILE: Final = "interest.json"
INTEREST_FILE: Final = "interest.safetensors"


def spec_from_dict(fields: Mapping[str, Any]) -> ModelSpec:
    """Read what either ``to_dict`` wrote."""
    if "kind" in fields and fields["kind"] == "interest":
        return InterestSpec.from_dict(fields)
    return AdapterSpec.from_dict(dict(fields))


def trains(spec: ModelSpec) -> Trains:
    """What a run with this form trains."""
    return "interest" if isinstance(spec, InterestSpec) else "copy"


def held(files: Container[str]) -> Trains:
    """What an artifact with these files holds."""
    return "interest" if INTEREST_FILE in files else "copy"


def shapes_of(spec: ModelSpec, base: BaseModel) -> dict[str, tuple[int, int]]:
    """Name and shape of every trained tensor, in sorted order."""
    return spec.shapes if isinstance(spec, InterestSpec) else trained_shapes(spec, base)


def untrained(spec: ModelSpec, base: BaseModel) -> Tensors:
    """What a run begins with: zeros, of which neither model knows anything yet."""
    return {n: np.zeros(shape, np.float32) for n, shape in shapes_of(spec, base).items()}


def write_model(
    folder: Path,
    *,
    spec: ModelSpec,
    base: BaseModel,
    tensors: Tensors,
    card: str,
    lock: Callable[[bytes], bytes] | None = None,
) -> None:
    """Write a model as the files of an artifact: an adapter in PEFT's layout, or a model of interest.

    Raises:
        ArtifactError: A tensor is missing, extra, of another shape or not finite.
    """
    if isinstance(spec, AdapterSpec):
        write_adapter(folder, spec=spec, base=base, tensors=tensors, card=card, lock=lock)
        return
    if lock is not None:
        raise ArtifactError("a model of interest is nobody's own and is not locked")
    write_interest(folder, spec, tensors)
    (folder / CARD_FILE).write_text(card)


def write_interest(folder: Path, spec: InterestSpec, tensors: Tensors) -> None:
    """Write a model of interest, each file whole or not at all.

    Raises:
        ArtifactError: A tensor is missing, extra, of another shape or not finite.
    """
    check_tensors(tensors, spec.shapes)
    folder.mkdir(parents=True, exist_ok=True)
    weights = save({n: np.ascontiguousarray(tensors[n]) for n in sorted(tensors)})
    write_durably(folder / INTEREST_FILE, weights)
    text = json.dumps(spec.to_dict(), indent=2, sort_keys=True) + "\n"
    write_durably(folder / SPEC_FILE, text.encode())


def read_tensors(folder: Path, spec: ModelSpec, base: BaseModel) -> Tensors:
    """What was trained, out of an artifact of everybody's, checked.

    Raises:
        ArtifactError: It cannot be read, or is of another form.
    """
    if isinstance(spec, AdapterSpec):
        tensors = read_adapter(folder).tensors
        return {name: tensors[name].copy() for name in trained_shapes(spec, base)}
    found, tensors = read_interest(folder)
    if found != spec:
        raise ArtifactError(f"{folder}: a model of interest of another form")
    return tensors


def read_interest(folder: Path) -> tuple[InterestSpec, Tensors]:
    """A model of interest, whoever wrote it.

    Raises:
        ArtifactError: Naming the file and what is wrong with it.
    """
    try:
        spec = spec_from_dict(json.loads((folder / SPEC_FILE).read_text()))
        tensors: Tensors = load(read_bounded(folder / INTEREST_FILE))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise ArtifactError(f"{folder}: not a readable model of interest ({error})") from error
    if not isinstance(spec, InterestSpec):
        raise ArtifactError(f"{folder / SPEC_FILE}: no model of interest")
    check_tensors(tensors, spec.shapes)
    return spec, tensors

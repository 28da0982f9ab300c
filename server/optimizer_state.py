"""The server optimiser's memory, one file per committed round, so that a run can go on."""

from pathlib import Path

from safetensors.numpy import load_file, save_file

from handbill.errors import RoundError
from handbill.federation.aggregation import OptimizerState, Shapes
from handbill.generator.artifacts import sync_to_disk


def save_state(home: Path, digest: str, state: OptimizerState, *, parent: str) -> None:
    """Write durably the state that belongs to an artifact that is about to be committed.

    Of the others only its parent's is kept: the run goes on from there if the commit fails.
    """
    path = _path(home, digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"first/{name}": value for name, value in state.first.items()}
    tensors |= {f"second/{name}": value for name, value in state.second.items()}
    temporary = path.with_suffix(".new")
    save_file(tensors, temporary, metadata={"steps": str(state.steps)})
    sync_to_disk(temporary)
    temporary.rename(path)
    sync_to_disk(path.parent)
    for old in path.parent.glob("*.safetensors"):
        if old not in {path, _path(home, parent)}:
            old.unlink()


def load_state(home: Path, digest: str, shapes: Shapes) -> OptimizerState:
    """Read the state that belongs to an artifact.

    Raises:
        RoundError: It is not there: the run cannot go on from this round.
    """
    path = _path(home, digest)
    if not path.is_file():
        raise RoundError(f"{path}: missing; this run cannot go on, start a new one")
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        steps = int(file.metadata()["steps"])
    tensors = load_file(path)
    return OptimizerState(
        steps,
        {name: tensors[f"first/{name}"] for name in shapes},
        {name: tensors[f"second/{name}"] for name in shapes},
    )


def _path(home: Path, digest: str) -> Path:
    return home / "optimizer" / f"{digest.removeprefix('sha256:')}.safetensors"

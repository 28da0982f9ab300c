"""The operator's settings: one ``server.toml``, checked once when it is read."""

import tomllib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Self

import tomli_w

from handbill.errors import InputError, MissingError
from handbill.federation.aggregation import ServerOptimizer
from handbill.federation.messages import Recipe

SETTINGS_FILE: Final = "server.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSettings:
    """Which part of the base model is trained; ``layers`` counts from the output, 0 is all."""

    rank: int = 8
    alpha: float = 16.0
    layers: int = 12
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Everything the operator decides.

    Attributes:
        host: Where the SuperLink listens.
        base: Name of the base model (:func:`handbill.generator.base_models.resolve_base`).
        min_reports: Fewer good reports than this, and a round is not committed.
        deadline_s: How long a round waits for reports.
        max_update_norm: A report with a larger update is refused.
        gate_nats: A round that makes the loss on the probe texts rise by more is not committed.
    """

    host: str = "127.0.0.1"
    port: int = 18443
    base: str = "smollm2-135m"
    device: str = "cpu"
    min_reports: int = 2
    deadline_s: float = 900.0
    max_update_norm: float = 1e3
    gate_nats: float = 2.0
    adapter: AdapterSettings = field(default_factory=AdapterSettings)
    recipe: Recipe = field(default_factory=Recipe)
    optimizer: ServerOptimizer = field(default_factory=lambda: ServerOptimizer(learning_rate=4e-2))

    def __post_init__(self) -> None:
        if not 0 < self.port < 65536:
            raise InputError(f"{SETTINGS_FILE}: port={self.port} not in [1, 65535]")
        if self.min_reports < 1:
            raise InputError(f"{SETTINGS_FILE}: min_reports={self.min_reports} must be at least 1")

    @property
    def address(self) -> str:
        """What merchants connect to."""
        return f"{self.host}:{self.port}"

    def save(self, home: Path) -> None:
        """Write ``server.toml``."""
        home.mkdir(parents=True, exist_ok=True)
        (home / SETTINGS_FILE).write_text(tomli_w.dumps(asdict(self)))

    @classmethod
    def load(cls, home: Path) -> Self:
        """Read ``server.toml``.

        Raises:
            MissingError: There is none.
            InputError: Naming the file and the key that is wrong.
        """
        path = home / SETTINGS_FILE
        if not path.is_file():
            raise MissingError(f"{path}: not there; run `handbill server init` first")
        try:
            given: dict[str, Any] = tomllib.loads(path.read_text())
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"{path}: {error}") from error
        parts = {"adapter": AdapterSettings, "recipe": Recipe, "optimizer": ServerOptimizer}
        for name, part in parts.items():
            if name in given:
                given[name] = _build(part, given[name], f"{path}: [{name}]")
        built: Self = _build(cls, given, str(path))
        return built


def _build(cls: Any, given: dict[str, Any], where: str) -> Any:
    known = {f.name for f in fields(cls)}
    for key in given:
        if key not in known:
            raise InputError(f"{where}: unknown key {key!r}; known: {', '.join(sorted(known))}")
    try:
        return cls(**given)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error

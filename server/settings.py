"""The operator's settings: one ``server.toml``, checked once when it is read."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Self, get_args

from handbill.errors import InputError
from handbill.federation.aggregation import ServerOptimizer
from handbill.federation.messages import Compression, Recipe
from handbill.federation.secagg.ring import Ring
from handbill.federation.secagg.session import MIN_COHORT
from handbill.federation.settings_file import load_settings, save_settings
from handbill.generator.interest_spec import InterestSpec
from handbill.generator.model_specs import Trains

SETTINGS_FILE: Final = "server.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSettings:
    """Which part of the base model is trained; ``layers`` counts from the output, 0 is all."""

    rank: int = 8
    alpha: float = 16.0
    layers: int = 16
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class InterestSettings:
    """A run of the model of interest: its form, how merchants train it, how the server steps.

    Attributes:
        buckets: Facts of shoppers and products are hashed into so many.
        hidden: Hidden units.
        rounds: Private rounds, one private step each.
        expected_users: Shoppers sampled in a step, on average.
        rows_per_user: At most so many rows of one shopper are used in a step.
        clipping_norm: L2 bound of one shopper's gradient.
        learning_rate: Of the server's optimiser, FedAvgM: Adam's step would be as long on a fact that
            nobody sampled has, of which there is noise only.
    """

    buckets: int = 512
    hidden: int = 8
    rounds: int = 40
    expected_users: int = 32
    rows_per_user: int = 8
    clipping_norm: float = 1.0
    learning_rate: float = 7.0

    def __post_init__(self) -> None:
        self.spec, self.recipe, self.optimizer  # noqa: B018 - each checks its own

    @property
    def spec(self) -> InterestSpec:
        """The form of the model."""
        return InterestSpec(buckets=self.buckets, hidden=self.hidden)

    @property
    def recipe(self) -> Recipe:
        """How merchants train."""
        return Recipe(
            rounds=self.rounds,
            personal_steps=0,
            expected_users=self.expected_users,
            rows_per_user=self.rows_per_user,
            clipping_norm=self.clipping_norm,
            batch_rows=256,
        )

    @property
    def optimizer(self) -> ServerOptimizer:
        """How the server steps."""
        return ServerOptimizer(kind="fedavgm", learning_rate=self.learning_rate)


@dataclass(frozen=True, slots=True, kw_only=True)
class SecureAggregation:
    """Whether only sums of updates may be learnt (protocol SA-1), and how they are encoded.

    Attributes:
        enabled: False asks for updates one by one, which merchants' policies refuse by default.
        bits: Of a number on the wire: 32, or 24 for a quarter less to send.
        bound: A coordinate of an update beyond it is cut off there.
        group_size: Sum in groups of about so many merchants, of which the median is taken; 0
            sums all of them at once. At least 5.
        repeats: So many sums of a run may be lost after merchants signed for them, before the run
            stops: each costs those merchants a round's budget, for which their policies have room
            once by default (``spare_rounds``).
    """

    enabled: bool = True
    bits: int = 32
    bound: float = 1.0
    group_size: int = 0
    repeats: int = 1

    def __post_init__(self) -> None:
        Ring(bits=self.bits, bound=self.bound)
        if self.group_size and self.group_size < MIN_COHORT:
            raise InputError(f"group_size={self.group_size}: 0, or {MIN_COHORT} at least")
        if self.repeats < 0:
            raise InputError(f"repeats={self.repeats} is negative")

    @property
    def ring(self) -> Ring | None:
        """How updates are encoded; None where they are not summed securely."""
        return Ring(bits=self.bits, bound=self.bound) if self.enabled else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Everything the operator decides.

    Attributes:
        host: Where the SuperLink listens.
        base: Name of the base model (:func:`handbill.generator.base_models.resolve_base`).
        invitations: Whether nobody enrols without a one-time invitation.
        enrol_port: Where ``handbill server run`` lets invited merchants enrol over the network; 0 does
            not.
        min_reports: Fewer good reports than this, and a round is not committed.
        enough_reports: With so many good reports a round of the global adapter waits for no more;
            0 waits for everybody until the deadline.
        compression: Of updates that are not summed securely: ``none``, or ``int8``, a quarter of
            the size.
        deadline_s: How long an attempt at a round waits for merchants, in all its phases. In secure
            sums three quarters of it are for training, the rest for the phases after it.
        quarantine_after: A merchant that failed or was late in so many committed rounds in a row is
            left out of as many; 0 waits for everybody always, but for who broke the protocol.
        max_update_norm: A report with a larger update is refused.
        gate_nats: A round that makes the loss on the probe texts rise by more is not committed.
        tensorboard: Write the curves of each run below ``tensorboard/`` in the server's home.
        mlflow: Tracking URI of an MLflow that gets the same curves; empty for none.
    """

    host: str = "127.0.0.1"
    port: int = 18443
    base: str = "smollm2-135m"
    device: str = "cpu"
    invitations: bool = False
    enrol_port: int = 0
    min_reports: int = 2
    enough_reports: int = 0
    compression: Compression = "none"
    deadline_s: float = 900.0
    quarantine_after: int = 3
    max_update_norm: float = 1e3
    gate_nats: float = 2.0
    tensorboard: bool = True
    mlflow: str = ""
    adapter: AdapterSettings = field(default_factory=AdapterSettings)
    recipe: Recipe = field(default_factory=Recipe)
    optimizer: ServerOptimizer = field(default_factory=lambda: ServerOptimizer(learning_rate=3e-2))
    secure_aggregation: SecureAggregation = field(default_factory=SecureAggregation)
    interest: InterestSettings = field(default_factory=InterestSettings)

    def __post_init__(self) -> None:
        if not 0 < self.port < 65536:
            raise InputError(f"{SETTINGS_FILE}: port={self.port} not in [1, 65535]")
        if not 0 <= self.enrol_port < 65536 or self.enrol_port == self.port:
            raise InputError(
                f"{SETTINGS_FILE}: enrol_port={self.enrol_port} not in [0, 65535] or that of port"
            )
        if self.quarantine_after < 0:
            raise InputError(
                f"{SETTINGS_FILE}: quarantine_after={self.quarantine_after} is negative"
            )
        if self.enough_reports and self.enough_reports < self.min_reports:
            raise InputError(
                f"{SETTINGS_FILE}: enough_reports={self.enough_reports} is below "
                f"min_reports={self.min_reports}; 0 waits for everybody"
            )
        if self.compression not in get_args(Compression):
            raise InputError(
                f"{SETTINGS_FILE}: compression={self.compression!r}: "
                f"{' or '.join(get_args(Compression))}"
            )
        if self.min_reports < 1:
            raise InputError(f"{SETTINGS_FILE}: min_reports={self.min_reports} must be at least 1")

    def of_run(self, trains: Trains) -> Self:
        """The settings of a run: one of the model of interest has its own recipe and optimiser."""
        if trains == "copy":
            return self
        return replace(self, recipe=self.interest.recipe, optimizer=self.interest.optimizer)

    @property
    def address(self) -> str:
        """What merchants connect to."""
        return f"{self.host}:{self.port}"

    def save(self, home: Path) -> None:
        """Write ``server.toml``."""
        save_settings(self, home / SETTINGS_FILE)

    @classmethod
    def load(cls, home: Path) -> Self:
        """Read ``server.toml``.

        Raises:
            MissingError: There is none.
            InputError: Naming the file and the key that is wrong.
        """
        return load_settings(
            cls,
            home / SETTINGS_FILE,
            remedy="run `handbill server init` first",
            tables={
                "adapter": AdapterSettings,
                "recipe": Recipe,
                "optimizer": ServerOptimizer,
                "secure_aggregation": SecureAggregation,
                "interest": InterestSettings,
            },
        )

"""A merchant's home: what it takes part in (``merchant.toml``) and what it allows (``policy.toml``).

The policy is the merchant's alone: no message from the server can change or override it.
"""

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

from handbill.errors import InputError, PolicyError
from handbill.federation.messages import Instruction
from handbill.federation.secagg.session import MIN_COHORT
from handbill.federation.settings_file import load_settings, save_settings
from handbill.generator.artifacts import check_tenant
from handbill.generator.interest_spec import InterestSpec
from handbill.privacy.accounting import LARGEST_DELTA, SMALLEST_DELTA, default_delta

MERCHANT_FILE: Final = "merchant.toml"
POLICY_FILE: Final = "policy.toml"
LEDGER_FILE: Final = "ledger.db"
PROGRESS_FILE: Final = "progress.jsonl"
SIGNING_KEY: Final = Path("keys/signing.key")
NODE_KEY: Final = Path("keys/node.key")
CA_FILE: Final = Path("kit/ca.crt")
SERVER_KEY: Final = Path("kit/server.pub")


@dataclass(frozen=True, slots=True, kw_only=True)
class Merchant:
    """What a merchant's client needs to know to take part.

    Attributes:
        id: The merchant's, and its shop's, id.
        data: Folder of the shop's data or of the market that holds it, or a description.
        server: Address of the SuperLink, ``host:port``.
        base: Name of the base model on this machine.
        dtype: What the frozen base computes in: ``float32``, or ``bfloat16``, half the size,
            with one shopper computed at a time.
        threads: CPU threads of the trainer; 0 leaves it to PyTorch.
        feedback: What is learnt from feedback that was fetched: ``weighted``, the copy that shoppers
            clicked; ``preference``, what they clicked before what they passed over; ``off``, nothing.
        replay: Of a shopper with feedback: the share of older rows among what is drawn.
        stop_at_rise: The shop's own adapter is trained no further once the loss on its product
            descriptions rose by so many nats a token; 0 takes all steps.
        augment: Chance that a variant with synonyms is learnt from in the place of a row.
        synonyms: The file or folder that they are in.
    """

    id: str
    name: str
    data: str
    describe: str = ""
    server: str
    base: str
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 0
    feedback: str = "weighted"
    replay: float = 0.5
    stop_at_rise: float = 0.0
    augment: float = 0.0
    synonyms: str = ""

    def __post_init__(self) -> None:
        check_tenant(self.id)
        if self.feedback not in {"weighted", "preference", "off"}:
            raise InputError(
                f"{MERCHANT_FILE}: feedback={self.feedback!r}: weighted, preference or off"
            )
        if not 0 <= self.replay <= 1:
            raise InputError(f"{MERCHANT_FILE}: replay={self.replay} not in [0, 1]")
        if not 0 <= self.stop_at_rise < math.inf:
            raise InputError(f"{MERCHANT_FILE}: stop_at_rise={self.stop_at_rise} is negative")
        if not 0 <= self.augment <= 1:
            raise InputError(f"{MERCHANT_FILE}: augment={self.augment} not in [0, 1]")
        if self.augment and not self.synonyms:
            raise InputError(f"{MERCHANT_FILE}: augment={self.augment} needs a file of synonyms")
        if self.dtype not in {"float32", "bfloat16"}:
            raise InputError(f"{MERCHANT_FILE}: dtype={self.dtype!r}: float32 or bfloat16")

    def save(self, home: Path) -> None:
        """Write ``merchant.toml``."""
        save_settings(self, home / MERCHANT_FILE)

    @classmethod
    def load(cls, home: Path) -> Self:
        """Read ``merchant.toml``."""
        return load_settings(cls, home / MERCHANT_FILE, remedy="run `handbill client init` first")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What a merchant allows, whatever the server asks.

    Attributes:
        epsilon_limit: Everything this shop ever sends stays within it; the ledger enforces it.
        epsilon_per_run: What one training run costs at most, with ``spare_rounds`` of its rounds
            repeated; noise is calibrated for it.
        epsilon_per_interest_run: The same for a run of the model of interest, out of the same
            ``epsilon_limit``; 0 takes part in none.
        spare_rounds: Rounds of a run that may have to be trained and paid for a second time, such
            as one whose sum the server lost, without passing ``epsilon_per_run``.
        users: How many shoppers there are to train on, as this shop lets it be known: a rounded
            figure, which the sampling rate is computed from. The exact number is private.
        delta: The chance left out of the guarantee, below one over the number of shoppers.
        min_users: With fewer shoppers nothing is trained.
        max_sampling_rate: No step may be expected to use a larger share of the shoppers.
        held_out: Share of the shoppers kept out of training, to measure on.
        max_rounds_per_day: Private rounds paid for within 24 hours; what is asked beyond waits.
        personal: Whether the shop's own adapter may be trained and sent.
        catalogue: Whether product descriptions may be trained on without noise: say false where
            a shopper is in them.
        secure_aggregation: Give updates only to sums that hide them (protocol SA-1). Saying false
            lets the operator see this shop's noisy updates one by one.
        min_cohort: Fewest merchants in such a sum, 5 or more.
        software: Digest of the only handbill that may train here; empty allows what is installed.
        base: Digest of the only base model that may be trained; empty allows the one on this machine.
        lost_ledger_head: The head of a ledger that is lost for good: that the ledger of now does
            not hold it stops training no more.
    """

    epsilon_limit: float = 8.0
    epsilon_per_run: float = 8.0
    epsilon_per_interest_run: float = 1.0
    spare_rounds: int = 1
    users: int
    delta: float
    min_users: int = 50
    max_sampling_rate: float = 0.25
    max_rows_per_user: int = 16
    held_out: float = 0.1
    max_rounds_per_day: int = 100
    personal: bool = True
    catalogue: bool = True
    secure_aggregation: bool = True
    min_cohort: int = MIN_COHORT
    software: str = ""
    base: str = ""
    lost_ledger_head: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.epsilon_per_run <= self.epsilon_limit < math.inf:
            raise InputError(
                f"{POLICY_FILE}: 0 < epsilon_per_run={self.epsilon_per_run} <= "
                f"epsilon_limit={self.epsilon_limit} must hold"
            )
        if not 0 <= self.epsilon_per_interest_run < math.inf:
            raise InputError(
                f"{POLICY_FILE}: epsilon_per_interest_run={self.epsilon_per_interest_run} is negative"
            )
        if self.spare_rounds < 0:
            raise InputError(f"{POLICY_FILE}: spare_rounds={self.spare_rounds} is negative")
        if not SMALLEST_DELTA <= self.delta <= LARGEST_DELTA:
            raise InputError(
                f"{POLICY_FILE}: delta={self.delta} not in [{SMALLEST_DELTA}, {LARGEST_DELTA}]"
            )
        if self.users < 1:
            raise InputError(f"{POLICY_FILE}: users={self.users} must be at least 1")
        if not 0 < self.max_sampling_rate <= 1:
            raise InputError(
                f"{POLICY_FILE}: max_sampling_rate={self.max_sampling_rate} not in (0, 1]"
            )
        if self.max_rounds_per_day < 1:
            raise InputError(
                f"{POLICY_FILE}: max_rounds_per_day={self.max_rounds_per_day} must be at least 1"
            )
        if self.min_cohort < MIN_COHORT:
            raise InputError(
                f"{POLICY_FILE}: min_cohort={self.min_cohort}: {MIN_COHORT} merchants at least"
            )
        if not re.fullmatch(r"([0-9a-f]{64})?", self.lost_ledger_head):
            raise InputError(f"{POLICY_FILE}: lost_ledger_head is not a head of 64 hex digits")
        for name in ("software", "base"):
            if not re.fullmatch(r"(sha256:[0-9a-f]{64})?", getattr(self, name)):
                raise InputError(
                    f"{POLICY_FILE}: {name} is not sha256: and 64 hex digits; `handbill client "
                    f"policy --pin` writes what is installed"
                )
        if not 0 < self.held_out < 1:
            raise InputError(f"{POLICY_FILE}: held_out={self.held_out} not in (0, 1)")

    def save(self, home: Path) -> None:
        """Write ``policy.toml``."""
        save_settings(self, home / POLICY_FILE)

    @classmethod
    def load(cls, home: Path) -> Self:
        """Read ``policy.toml``."""
        return load_settings(cls, home / POLICY_FILE, remedy="run `handbill client init` first")

    @classmethod
    def for_users(cls, users: int, **given: Any) -> Self:
        """The default policy of a shop with so many shoppers, held-out ones among them."""
        policy = cls(users=1, delta=LARGEST_DELTA, **given)
        trained = max(1, int(users * (1 - policy.held_out)))
        step = 10 ** max(0, len(str(trained)) - 2)  # two digits are enough to be known
        public = trained // step * step
        return replace(policy, users=public, delta=default_delta(public))

    def check_installed(self, *, software: str, base: str) -> None:
        """Refuse to train with another handbill or base model than the ones this policy names.

        Raises:
            PolicyError: Naming what is installed.
        """
        for name, installed in (("software", software), ("base", base)):
            if getattr(self, name) not in {"", installed}:
                raise PolicyError(
                    f"{POLICY_FILE}: {name} allows {getattr(self, name)}, and {installed} is "
                    f"installed. Find out what changed; `handbill client policy --pin` allows it"
                )

    def setting_for(self, asked: Instruction) -> str:
        """The name of the field that says what the run of an instruction may cost."""
        interest = isinstance(asked.spec, InterestSpec)
        return "epsilon_per_interest_run" if interest else "epsilon_per_run"

    def check_base(self, asked: Instruction, *, base_digest: str) -> None:
        """Refuse an instruction for another base model.

        Raises:
            PolicyError: It is for another.
        """
        if asked.base_digest != base_digest:
            raise PolicyError(
                "the server trains another base model than the one on this machine; install "
                "the same base, or ask the operator"
            )

    def _check_interest(self, asked: Instruction) -> None:
        if not self.epsilon_per_interest_run:
            raise PolicyError("the policy does not allow training a model of interest")
        if asked.stage != "global":
            raise PolicyError(f"a model of interest is not trained in a {asked.stage} round")

    def check(self, asked: Instruction, *, base_digest: str) -> float:
        """Refuse an instruction this policy does not allow.

        Returns:
            The sampling rate of a private step; 0 for a warm-up, which samples no shopper.

        Raises:
            PolicyError: Naming the limit and what was asked.
        """
        self.check_base(asked, base_digest=base_digest)
        if self.secure_aggregation and asked.phase == "train" and asked.stage != "personal":
            raise PolicyError(
                "the operator would see this shop's update by itself; the policy wants it summed "
                "securely (secure_aggregation)"
            )
        if isinstance(asked.spec, InterestSpec):
            self._check_interest(asked)
        if asked.stage == "warmup":
            if not self.catalogue:
                raise PolicyError("the policy does not allow training on the catalogue")
            return 0.0
        if asked.stage == "personal" and not self.personal:
            raise PolicyError("the policy does not allow training the shop's own adapter")
        if self.users < self.min_users:
            raise PolicyError(
                f"{self.users} shoppers can be trained on; the policy wants {self.min_users}"
            )
        rate = asked.recipe.expected_users / self.users
        if rate > self.max_sampling_rate:
            raise PolicyError(
                f"{asked.recipe.expected_users} shoppers a step are {rate:.0%} of this shop's; "
                f"the policy allows {self.max_sampling_rate:.0%}"
            )
        if asked.recipe.rows_per_user > self.max_rows_per_user:
            raise PolicyError(
                f"rows_per_user={asked.recipe.rows_per_user}: the policy allows "
                f"{self.max_rows_per_user}"
            )
        return rate

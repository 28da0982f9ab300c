"""One frozen value that says how the service runs."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, Self

from handbill.errors import InputError
from handbill.generator.base_models import LLAMA_LIKE

PREFIX: Final = "HANDBILL_SERVING_"
# Architectures of base models that the engine computes.
MODELS: Final = LLAMA_LIKE
_LEAST: Final = {
    "replicas": 1,
    "max_batch": 1,
    "slots": 1,
    "max_rank": 1,
    "prefill_tokens": 1,
    "prefix_cache_bytes": 0,
    "max_prompt_tokens": 1,
    "max_tokens": 1,
    "max_choices": 1,
    "copy_attempts": 1,
    "queue_limit": 1,
    "burst": 1,
    "concurrent": 1,
    "tokens_per_minute": 0,
    "tokens_per_day": 0,
    "tokens_per_month": 0,
    "max_body_bytes": 1,
    "batch_body_bytes": 1,
    "batch_rows": 1,
    "batch_max_rows": 1,
}
_ONE_OF: Final = {
    "dtype": ("float32", "bfloat16", "float16"),
    "device": ("cpu", "cuda"),
    "engine": ("torch", "vllm"),
}
_MOST: Final = {"port": 65535, "metrics_port": 65535, "feedback_days": 3650, "batch_days": 3650}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingConfig:
    """How the service runs. Every field may come from the environment (:meth:`from_env`).

    Attributes:
        registry: The publisher's registry folder: ``store/``, ``channels/``, ``vault/``,
            ``publisher.pub``.
        kek: File of the key-encryption key of tenants' adapters; ``../keys/vault.kek`` of the
            registry when empty.
        state: This service's own folder: database, pepper, Ray's files.
        base: Name, folder or hub id of the base model.
        database_url: SQLAlchemy URL; SQLite in ``state`` when empty.
        replicas: Engines, each with the base model in memory of its own. A tenant goes where its
            adapter is already, if that one is not full.
        max_replicas: Start more while requests wait, up to so many; 0 is ``replicas``.
        engine: ``torch``, our own, or ``vllm``, which is for GPUs and installed apart. It searches
            nothing.
        threads: Torch threads of an engine on the CPU; 0 shares the cores out among the engines.
        device: ``cpu`` or ``cuda``.
        max_batch: Rows decoded together; one more is kept for a tenant that has none.
        slots: Adapters held in memory beside the base model.
        max_rank: Largest LoRA rank that is taken.
        context_tokens: Longest prompt and answer together.
        prefill_tokens: Tokens of prompts run in one turn, beside the running rows: how long a
            newcomer's text may hold up the others.
        prefix_cache_bytes: Memory for the beginnings of prompts, each tenant's for itself; 0 is
            off.
        max_prompt_tokens: Longest prompt of ``/v1/copy``; the same as in training.
        max_tokens: Longest answer a request may ask for.
        max_choices: Most answers one request may ask for.
        copy_attempts: Candidates written for one piece of copy until one passes the check.
        queue_limit: Rows that may wait, over all tenants; any tenant may have ``max_batch`` of its own.
        poll_s: Seconds between two looks at the channels.
        requests_per_minute: Per tenant, counted in answers (a request for 3 copies counts 3).
        burst: Answers a tenant that was quiet may ask for at once.
        concurrent: Requests of one tenant that may run at once.
        tokens_per_minute: Per tenant, of prompts and answers together; 0 is no limit. These three and
            the two above hold for tenants without limits of their own.
        tokens_per_day: The same for a day in UTC.
        tokens_per_month: The same for a calendar month in UTC.
        max_body_bytes: Largest request body that is read.
        batch_body_bytes: The same of requests about batches.
        batch_rows: Rows of the engine's that batches take at most, below ``max_batch``.
        batch_max_rows: Most rows of one batch.
        batch_days: How long a batch and its results are kept after its last row, and one that is not
            finished after it was made.
        feedback_days: How long it is kept which copy was served and what shoppers did with it, and
            so how long an experiment may run; 0 keeps nothing.
        feedback_kek: File of the key-encryption key of feedback; ``keys/vault.kek`` in ``state``
            when empty.
        scenarios: Folder with tenants' own scenarios, ``TENANT.toml`` each; ``scenarios`` in ``state`` when
            empty.
        sentiment: File of the sentiment model that tells the tone of candidates; ``../sentiment.safetensors``
            of ``state``, if that is there, when empty.
        metrics_port: Port of 127.0.0.1 with the operator's page and figures for Prometheus; 0 is
            none.
        access_log: File that gets a line of JSON for every request for text; none when empty.
        traces: URL of an OTLP/HTTP receiver for traces; none are made when empty.
    """

    registry: Path
    state: Path
    kek: str = ""
    base: str = "smollm2-135m"
    database_url: str = ""
    host: str = "127.0.0.1"
    port: int = 8000
    engine: str = "torch"
    device: str = "cpu"
    dtype: str = "float32"
    replicas: int = 1
    max_replicas: int = 0
    threads: int = 0
    max_batch: int = 16
    slots: int = 16
    max_rank: int = 64
    context_tokens: int = 1024
    prefill_tokens: int = 256
    prefix_cache_bytes: int = 128 * 2**20
    max_prompt_tokens: int = 96
    max_tokens: int = 256
    max_choices: int = 8
    copy_attempts: int = 3
    queue_limit: int = 128
    poll_s: float = 1.0
    requests_per_minute: float = 600.0
    burst: int = 60
    concurrent: int = 16
    tokens_per_minute: int = 0
    tokens_per_day: int = 0
    tokens_per_month: int = 0
    max_body_bytes: int = 64 * 1024
    batch_body_bytes: int = 2**20
    batch_rows: int = 8
    batch_max_rows: int = 100_000
    batch_days: float = 7.0
    feedback_days: float = 90.0
    feedback_kek: str = ""
    scenarios: str = ""
    sentiment: str = ""
    metrics_port: int = 0
    access_log: str = ""
    traces: str = ""

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise InputError(f"{name}={getattr(self, name)} must be at least {least}")
        if self.max_replicas and self.max_replicas < self.replicas:
            raise InputError(f"max_replicas={self.max_replicas} is below replicas={self.replicas}")
        if self.context_tokens <= self.max_tokens:
            raise InputError(
                f"context_tokens={self.context_tokens} leaves no prompt beside "
                f"max_tokens={self.max_tokens}"
            )
        if self.burst < self.max_choices:
            raise InputError(f"burst={self.burst} is below max_choices={self.max_choices}")
        self._check_choices()
        if self.traces and not self.traces.startswith(("http://", "https://")):
            raise InputError(f"traces={self.traces!r} is not an http:// or https:// URL")
        if self.poll_s <= 0 or self.requests_per_minute <= 0:
            raise InputError("poll_s and requests_per_minute must be positive")
        for name, most in _MOST.items():
            if not 0 <= getattr(self, name) <= most:
                raise InputError(f"{name}={getattr(self, name)} not in [0, {most}]")

    def _check_choices(self) -> None:
        for name, allowed in _ONE_OF.items():
            if getattr(self, name) not in allowed:
                value = getattr(self, name)
                raise InputError(f"{name}={value!r} is not one of {', '.join(allowed)}")
        if self.engine == "vllm" and self.dtype == "float16":
            raise InputError(
                "dtype='float16': with engine=vllm numbers that run over in one answer would reach "
                "others; take bfloat16"
            )

    @property
    def most_replicas(self) -> int:
        """Engines there may be at once."""
        return self.max_replicas or self.replicas

    @property
    def explains(self) -> bool:
        """Whether the engine scores texts, which an explanation takes."""
        return self.engine == "torch"

    @property
    def most_beams(self) -> int:
        """Beams a request may search with; 1 is no search."""
        return min(self.max_choices, self.max_batch) if self.engine == "torch" else 1

    @property
    def url(self) -> str:
        """The database's URL."""
        return self.database_url or f"sqlite:///{self.state.resolve() / 'serving.db'}"

    @property
    def scenarios_folder(self) -> Path:
        """Where tenants' own scenarios are."""
        return Path(self.scenarios) if self.scenarios else self.state / "scenarios"

    @property
    def sentiment_file(self) -> Path:
        """Where the sentiment model is, if there is one."""
        return Path(self.sentiment or self.state.parent / "sentiment.safetensors")

    @property
    def pepper(self) -> Path:
        """The file of the secret that API keys are hashed with."""
        return self.state / "pepper"

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ, **given: Any) -> Self:
        """Fields from ``HANDBILL_SERVING_<FIELD>``; values given here (not None) win.

        Raises:
            InputError: A variable that does not parse, by its name.
        """
        values: dict[str, Any] = {}
        for field in fields(cls):
            variable = PREFIX + field.name.upper()
            if variable in environ:
                parse = field.type if callable(field.type) else str
                try:
                    values[field.name] = parse(environ[variable])
                except ValueError as error:
                    raise InputError(f"{variable}={environ[variable]!r}: {error}") from error
        return cls(**{**values, **{k: v for k, v in given.items() if v is not None}})

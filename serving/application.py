"""The service as a Ray Serve application: a gateway, and engines behind it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from handbill.errors import InputError
from handbill.generator.base_models import BaseModel, resolve_base
from handbill.serving.config import ServingConfig
from handbill.serving.replicas import ENGINE, GATEWAY, EngineReplica, GatewayReplica, gateway_app
from handbill.serving.reports import REPORT_S


def application(config: ServingConfig, base: BaseModel, *, local: bool) -> Any:
    """Bind the deployments.

    Args:
        config: How the service runs.
        base: The base model, as this machine has it.
        local: All replicas are on this machine: they use this base model, and Serve's port between
            them is closed to other machines. Else each finds its own, and the network between them
            must be private.
    """
    from ray import serve

    waiting = 10 * (config.queue_limit + config.max_batch)  # the engine refuses, not Serve
    engine = serve.deployment(EngineReplica).options(
        name=ENGINE,
        **_how_many(config),
        max_ongoing_requests=waiting,
        ray_actor_options={"num_cpus": 0.5, "num_gpus": 1 if config.device == "cuda" else 0},
        graceful_shutdown_timeout_s=5.0,
        health_check_period_s=REPORT_S,
    )

    def build() -> Any:
        return gateway_app(config, base if local else resolve_base(config.base), local=local)

    gateway = serve.deployment(serve.ingress(build)(GatewayReplica)).options(
        name=GATEWAY,
        max_ongoing_requests=waiting,
        ray_actor_options={"num_cpus": 0.1},
        graceful_shutdown_timeout_s=5.0,
    )
    return gateway.bind(engine.bind(config, base if local else None, local=local))


def cluster(args: Mapping[str, Any]) -> Any:
    """Build the application for a cluster; the ``import_path`` of a Serve configuration.

    Args:
        args: Fields of :class:`~handbill.serving.config.ServingConfig`, as in its file;
            ``HANDBILL_SERVING_<FIELD>`` is read for the others. Folders must be the same in every pod.

    Raises:
        InputError: A field that does not exist, or no ``database_url``: a file of one pod cannot be
            the database of all.
    """
    given: dict[str, Any] = {
        name: Path(value) if name in {"registry", "state"} else value
        for name, value in args.items()
    }
    try:
        config = ServingConfig.from_env(**given)
    except TypeError as error:
        raise InputError(f"args: {error}") from error
    if config.url.startswith("sqlite"):
        raise InputError(
            "database_url: a cluster needs a database that all pods reach; set "
            "HANDBILL_SERVING_DATABASE_URL"
        )
    return application(config, resolve_base(config.base), local=False)


def _how_many(config: ServingConfig) -> dict[str, Any]:
    """Serve's options for a fixed number of engines, or for one that follows the load."""
    if config.most_replicas == config.replicas:
        return {"num_replicas": config.replicas}
    scaling = {
        "min_replicas": config.replicas,
        "max_replicas": config.most_replicas,
        "target_ongoing_requests": config.max_batch,
    }
    return {"autoscaling_config": scaling}

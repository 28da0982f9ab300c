"""The service as a Ray Serve app on this machine: a gateway and an engine replica.

Ray is told to stay on the loopback interface and to speak to nobody. What that takes was
measured with Ray 2.55.1:

- ``RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0`` keeps all its processes on 127.0.0.1;
- its usage reporter asks the cloud's metadata address even when usage statistics are off,
  unless the home folder holds a ``ray_bootstrap_config.yaml``: Ray gets a home of its own;
- :func:`handbill.serving.replicas.keep_grpc_local` closes the port between replicas.
"""

import contextlib
import importlib.util
import logging
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from handbill.errors import InputError
from handbill.generator.base_models import BaseModel, architecture, resolve_base
from handbill.serving.application import application
from handbill.serving.config import MODELS, ServingConfig
from handbill.serving.gateway import open_sentiment
from handbill.serving.own_scenarios import OwnScenarios
from handbill.serving.replicas import APP
from handbill.serving.tenants import open_tenants
from handbill.serving.watchdog import end_ray, ray_home, start_watchdog

log = logging.getLogger(__name__)

_STOP_S: Final = 10.0
_ENVIRONMENT: Final = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9",  # a port where nobody listens
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_SERVE_ENABLE_ACCESS_LOG": "0",
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
}
_running: list[tuple[Path, subprocess.Popen[bytes]]] = []  # one at most, with its watchdog


def start_service(config: ServingConfig) -> str:
    """Start the service from this process and wait until it can answer.

    One service per process. Its processes end with :func:`stop_service`, and with this
    process however that ends.

    Returns:
        Its base URL, such as ``http://127.0.0.1:8000``.

    Raises:
        InputError: The base model is not there or not of a kind that is served, the port is
            taken, or a service runs already.
    """
    if _running:
        raise InputError("a service is running in this process already")
    base = resolve_base(config.base)
    _check_kind(base)
    if config.engine == "vllm" and importlib.util.find_spec("vllm") is None:
        raise InputError(
            "engine=vllm: vLLM is not installed in this environment; docs/serving.md says how it is"
        )
    config = replace(
        config,
        registry=config.registry.resolve(),
        scenarios=config.scenarios and str(Path(config.scenarios).resolve()),
        sentiment=config.sentiment and str(Path(config.sentiment).resolve()),
        kek=config.kek and str(Path(config.kek).resolve()),
        state=config.state.resolve(),
        access_log=_opened(config.access_log),
        port=_free_port(config.host, config.port, "--port"),
    )
    if config.metrics_port:
        _free_port("127.0.0.1", config.metrics_port, "--metrics-port")
    OwnScenarios(config.scenarios_folder).check()
    open_sentiment(config)
    open_tenants(config).close()  # bad database, bad pepper: say so here, not in a replica's log
    folder = _new_folder()
    _running.append((folder, start_watchdog(folder)))
    try:
        _start_ray(config, folder)
        _start_app(config, base)
    except BaseException:
        stop_service()
        raise
    log.info("service_started", extra={"port": config.port})
    return f"http://{config.host}:{config.port}"


def stop_service() -> None:
    """Stop the service and wait until its last process is gone. Stopping twice is harmless."""
    if not _running:
        return
    folder, watchdog = _running.pop()
    import ray
    from ray import serve

    started = ray.is_initialized()
    try:
        if started:
            # The app first, which lets running requests end; serve.shutdown() instead would
            # have Ray print that its own controller's last task failed.
            with contextlib.suppress(Exception):  # whatever is left is ended below
                serve.delete(APP)
            ray.shutdown()
    finally:
        end_ray(folder, grace_s=_STOP_S if started else 0.0)
        watchdog.communicate()
    log.info("service_stopped")


def _check_kind(base: BaseModel) -> None:
    """Refuse here what the engine would refuse, with a trace, in a replica's log."""
    kind = architecture(base)
    if kind not in MODELS:
        raise InputError(f"base model {base.name} is a {kind}: served are {', '.join(MODELS)}")


def _start_ray(config: ServingConfig, folder: Path) -> None:
    home = ray_home(folder)
    home.mkdir()
    (home / "ray_bootstrap_config.yaml").write_text("provider: {type: local}\nmax_workers: 0\n")
    # Ray reads some of these when it is imported, and its processes inherit them all.
    with _environment({**_ENVIRONMENT, "HOME": str(home)}):
        import ray

        if ray.is_initialized():
            raise InputError("Ray runs in this process already; serve from a process of its own")
        ray.init(
            address="local",
            num_cpus=1 + config.most_replicas,  # a count for placing actors, not a limit
            num_gpus=config.most_replicas if config.device == "cuda" else 0,
            include_dashboard=False,
            object_store_memory=80 * 2**20,
            _temp_dir=str(folder),
            log_to_driver=False,
            logging_level=logging.ERROR,
        )


def _start_app(config: ServingConfig, base: BaseModel) -> None:
    from ray import serve
    from ray.serve.schema import LoggingConfig

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    serve.start(http_options={"host": config.host, "port": config.port}, logging_config=quiet)
    serve.run(
        application(config, base, local=True), name=APP, route_prefix="/", logging_config=quiet
    )


def _opened(access_log: str) -> str:
    """The file's whole path, once it was opened: a replica's working folder is another."""
    if not access_log:
        return ""
    path = Path(access_log).resolve()
    try:
        path.open("a").close()
    except OSError as error:
        raise InputError(f"access_log={access_log}: {error.strerror}") from error
    return str(path)


def _free_port(host: str, port: int, option: str) -> int:
    """The port to listen on (a free one for port 0), or an error now instead of a retry loop."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(
                f"port {port} on {host}: {error.strerror}; choose another with {option}"
            ) from error
        return int(probe.getsockname()[1])


def _new_folder() -> Path:
    """A folder for Ray's sockets and logs; its watchdog removes it."""
    parent = Path(tempfile.gettempdir())
    if len(str(parent)) > 40:  # a socket's path has 107 characters, and Ray's names are long
        raise InputError(f"temporary folder {parent} has too long a name for Ray; set TMPDIR")
    return Path(tempfile.mkdtemp(prefix="hb-ray-", dir=parent))


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

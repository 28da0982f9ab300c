"""``handbill demo``, as people run it: one real run with the real base model, and what it leaves.

On the public data set when it is there (``HANDBILL_SHARED_DATA`` or ``../shared/data``), on the
invented sample market otherwise.
"""

import json
import os
import random
import re
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from handbill.clients.markets import find_shops
from handbill.clients.merchant import LEDGER_FILE, Policy
from handbill.clients.shop import load_shop
from handbill.generator.artifacts import ArtifactStore, load_public_key, verify
from handbill.generator.base_models import load_base, resolve_base
from handbill.generator.channels import read_channel
from handbill.privacy.ledger import Ledger

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("HANDBILL_SHARED_DATA") or ROOT.parent / "shared" / "data")
DATA = SHARED / "xrec_reasons_en"
BASE = "smollm2-135m"
SMALL = "--rounds 1 --users 4 --personal-steps 1 --layers 6 --rows 4 --written 1"
SAMPLED = 200


@dataclass
class Ran:
    """A demo that is over."""

    home: Path
    code: int
    printed: str
    figures: dict
    family: object

    @property
    def registry(self):
        return self.home / "server" / "registry"

    @property
    def shops(self):
        return sorted(path.name for path in (self.home / "shops").iterdir())

    @property
    def market(self):
        return DATA if DATA.is_dir() else self.home / "market"

    def manifests(self):
        """Folder and manifest of every artifact, verified."""
        key = load_public_key(self.registry / "publisher.pub")
        store = ArtifactStore(self.registry / "store")
        return {digest: verify(store.path(digest), key) for digest in store}

    def query(self, sql):
        with sqlite3.connect(f"file:{self.home}/server/server.db?mode=ro", uri=True) as database:
            return database.execute(sql).fetchall()


@pytest.fixture(scope="module")
def base():
    return resolve_base(BASE)  # a clear error, not a skip, when the wheel is not installed


@pytest.fixture(scope="module")
def ran(base, tmp_path_factory, follow):
    folder = tmp_path_factory.mktemp("demo")
    home, results = folder / "home", folder / "first_light.json"
    command = [sys.executable, "-m", "handbill.cli", "demo", *SMALL.split()]
    command += ["--home", str(home), "--results", str(results)]
    if DATA.is_dir():
        command += ["--data", str(DATA)]
    printed = folder / "printed"
    with printed.open("w") as out:
        demo = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=folder)
        family = follow(demo.pid)
        code = demo.wait()
    family.stop()
    figures = json.loads(results.read_text())["metrics"] if results.is_file() else {}
    if not DATA.is_dir():
        figures = {name.removeprefix("sample."): value for name, value in figures.items()}
    return Ran(home, code, printed.read_text(), figures, family)


@pytest.fixture(scope="module")
def global_digest(ran):
    (digest,) = (d for d, m in ran.manifests().items() if m.kind == "global")
    return digest


def test_it_succeeds_and_says_where_the_report_is(ran):
    assert ran.code == 0, ran.printed
    assert f"report: {ran.home / 'report.html'}" in ran.printed
    assert "error" not in ran.printed.lower()


def test_three_shops_took_part(ran):
    assert len(ran.shops) == 3
    names = [source.info.name for source in find_shops(ran.market)]
    page = (ran.home / "report.html").read_text()
    assert all(name.replace("&", "&amp;") in page for name in names[:3])


def test_the_report_needs_nothing_from_elsewhere(ran):
    page = (ran.home / "report.html").read_text()
    assert len(page) > 10_000
    loaded = re.findall(r"""(?:src|href|xlink:href|data)\s*=\s*["']([^"']+)""", page)
    loaded += re.findall(r"url\(\s*[\"']?([^\"')]+)", page)
    assert [where for where in loaded if not where.startswith(("data:", "#"))] == []
    assert "@import" not in page


def test_the_figures_are_complete(ran):
    for shop in ran.shops:
        for name in ("loss_before", "loss_after", "epsilon", "delta", "users", "bytes_up"):
            assert ran.figures[f"{name}.{shop}"] > 0
    assert ran.figures["demo_seconds"] > 0
    assert ran.figures["round_overhead_warm_s"] > 0
    assert ran.figures["sockets_off_machine"] == 0


def test_every_ledger_is_intact_and_within_its_limit(ran):
    for shop in ran.shops:
        home = ran.home / "shops" / shop
        policy = Policy.load(home)
        limits = {"epsilon_limit": policy.epsilon_limit, "delta": policy.delta}
        with Ledger(home / LEDGER_FILE, read_only=True, **limits) as ledger:
            slots = [row.slot[1:3] for row in ledger.verify() if row.kind == "reserve"]
            spent = ledger.spent()
        assert slots == [(1, "global"), (1, "personal")]
        assert 0 < spent <= policy.epsilon_limit <= 8
        assert ran.figures[f"epsilon.{shop}"] == pytest.approx(spent, rel=1e-4)


def test_the_rounds_are_committed_in_the_database(ran):
    rounds = ran.query("SELECT number, stage, survivors, ledger_heads FROM round ORDER BY id")
    assert [(number, stage) for number, stage, *_ in rounds] == [(1, "global"), (1, "personal")]
    for *_, survivors, heads in rounds:
        assert json.loads(survivors) == ran.shops
        assert sorted(json.loads(heads)) == ran.shops
    assert ran.query("SELECT DISTINCT status FROM round") == [("committed",)]
    assert ran.query("SELECT status FROM run") == [("finished",)]


def test_the_server_was_given_the_ledgers_heads(ran):
    ((heads,),) = ran.query("SELECT ledger_heads FROM round WHERE stage = 'personal'")
    for shop, head in json.loads(heads).items():
        kept = (ran.home / "shops" / shop / "journal" / "ledger-head").read_text()
        assert head == kept


def test_every_artifact_is_signed_and_known_to_the_database(ran):
    manifests = ran.manifests()
    assert sorted((m.kind, m.tenant) for m in manifests.values()) == [
        ("global", ""),
        *(("tenant", shop) for shop in ran.shops),
    ]
    assert {digest for (digest,) in ran.query("SELECT digest FROM artifact")} == set(manifests)


def test_what_is_served_is_what_was_published(ran, global_digest):
    key = load_public_key(ran.registry / "publisher.pub")
    manifests = ran.manifests()
    assert read_channel(ran.registry, "", key).digest == global_digest
    for shop in ran.shops:
        assert manifests[read_channel(ran.registry, shop, key).digest].tenant == shop


def test_manifests_hold_base_lineage_and_metrics(ran, base, global_digest):
    ((run,),) = ran.query("SELECT id FROM run")
    for digest, manifest in ran.manifests().items():
        assert (manifest.base_name, manifest.base_digest) == (BASE, base.digest)
        assert (manifest.run, manifest.round) == (run, 1)
        assert manifest.parent == ("" if digest == global_digest else global_digest)
    assert ran.manifests()[global_digest].metrics["probe_loss"] > 0


def test_manifests_hold_every_merchants_dp_statement(ran):
    for manifest in ran.manifests().values():
        whose = sorted(statement["merchant"] for statement in manifest.privacy)
        assert whose == ([manifest.tenant] if manifest.tenant else ran.shops)
        for statement in manifest.privacy:
            assert 0 < statement["epsilon"] <= 8
            assert 0 < statement["delta"] <= 1e-3
            assert statement["unit"] == "user-within-one-merchant"
            assert statement["steps"] == (2 if manifest.tenant else 1)
            assert all(event["noise_multiplier"] > 0 for event in statement["events"])


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's own
def test_peft_loads_every_artifact_and_each_writes_differently(ran, base, tmp_path):
    import torch
    from peft import PeftModel

    model, tokenizer = load_base(base)
    ids = torch.tensor([tokenizer("This shopper likes")["input_ids"]])
    with torch.no_grad():
        outputs = [model(ids).logits]
        for number, digest in enumerate(ArtifactStore(ran.registry / "store")):
            name, folder = f"a{number}", tmp_path / str(number)
            export = [sys.executable, "-m", "handbill.cli", "models", "export", digest, folder]
            subprocess.run([*export, "--home", ran.home], check=True)
            if number:
                model.load_adapter(folder, adapter_name=name)
            else:
                model = PeftModel.from_pretrained(model, folder, adapter_name=name)
            model.set_adapter(name)
            outputs.append(model(ids).logits)
    assert len(outputs) == 1 + 1 + len(ran.shops)
    assert all(torch.isfinite(logits).all() for logits in outputs)
    for i, one in enumerate(outputs):
        assert not any(torch.equal(one, other) for other in outputs[:i])


def test_no_process_spoke_or_listened_beyond_this_machine(ran):
    family = ran.family
    assert family.looks > 20
    assert len(family.seen) > 40
    assert family.sockets > 1000
    assert family.off_machine == set()
    assert family.exposed == set()


def test_no_process_is_left(ran, processes_at):
    assert ran.family.wait_until_gone(5) == []
    assert processes_at(ran.home) == []


def test_no_shopper_is_in_a_log_or_at_the_server(ran):
    ids, texts = set(), set()
    for source in find_shops(ran.market):
        for row in load_shop(source).rows:
            ids.add(row.user)
            texts.update((row.text, row.request.shopper))
    draws = random.Random(0)
    known = draws.sample(sorted(texts), SAMPLED)
    # Forty plain characters of each, so that quoting and cutting hide nothing.
    plain = [max(re.findall(r"[A-Za-z ]+", text), key=len).strip()[:40] for text in known]
    wanted = {words.encode() for words in plain if len(words) >= 20}
    assert len(wanted) > SAMPLED / 4
    named = sorted(name for name in ids if len(name) >= 6)
    wanted |= {name.encode() for name in draws.sample(named, min(SAMPLED, len(named)))}
    pattern = re.compile(b"|".join(re.escape(words) for words in wanted))
    assert pattern.search("\n".join(texts).encode())  # it finds them where they are
    places = [ran.home / "logs", ran.home / "server", ran.home / "serving"]
    places += [ran.home / "shops" / shop / "logs" for shop in ran.shops]
    files = [path for place in places for path in place.rglob("*") if path.is_file()]
    assert len(files) > 30
    assert [str(path) for path in files if pattern.search(path.read_bytes())] == []


@pytest.mark.skipif(not DATA.is_dir(), reason="the sample market is written into the home")
def test_real_data_is_read_where_it_lies(ran):
    copies = {path.name for path in DATA.iterdir()}
    assert not [path for path in ran.home.rglob("*") if path.name in copies - {"README.md"}]


def test_keys_are_for_their_owner_alone(ran):
    keys = [path for path in ran.home.rglob("*") if path.suffix in {".key", ".secret"}]
    keys += list(ran.home.glob("shops/*/api_key"))
    assert len(keys) >= 3 * 3 + 2
    assert [str(path) for path in keys if path.stat().st_mode & 0o077] == []

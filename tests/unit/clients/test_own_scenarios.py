"""A shop's own scenarios are what it trains with, everywhere, and what it is served with, to the byte."""

import json
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from handbill.cli import app
from handbill.clients.descriptions import read_description
from handbill.clients.encoding import Encoder
from handbill.clients.evaluation import evaluate
from handbill.clients.feedback import FEEDBACK_FILE, write_feedback
from handbill.clients.markets import find_shops
from handbill.clients.merchant import Merchant
from handbill.clients.studies import INVENTED
from handbill.clients.trainer import Trainer
from handbill.errors import InputError, PolicyError
from handbill.federation.messages import Recipe, Report, Signed, open_signed
from handbill.generator.artifacts import load_or_create_key
from handbill.generator.prompts import fit_prompt, render_prompt
from handbill.generator.scenarios import read_scenarios, shipped
from handbill.serving.copy_body import CopyBody
from handbill.serving.own_scenarios import OwnScenarios

SERVER = Ed25519PrivateKey.generate()
# The tiny tokenizer spells most words in bytes.
RECIPE = Recipe(rounds=2, personal_steps=1, expected_users=8, max_prompt_tokens=400)
OWN = """
[words.en]
product = "Ware: {}"

[tones]
smoky = { en = "of smoke" }

[recommendation_reason]
en = { instruction = "Say in one breath why it suits them." }

[product_description]
en = { instruction = "Describe the ware." }

[haiku]
about = "three lines"
en = { instruction = "Write a haiku." }
"""
MARKS = ("Say in one breath", "Describe the ware.", "Write a haiku.")


@pytest.fixture
def shop_folder(tmp_path, shops):
    """A copy of the sample shop's description, tables named where they lie, with scenarios of its own."""

    def make(own=OWN, scenario="recommendation_reason", name="scenarios.toml"):
        folder = tmp_path / "own-shop"
        folder.mkdir(exist_ok=True)
        text = (shops / "shop-a/shop.toml").read_text()
        text = text.replace('file = "', f'file = "{shops / "shop-a"}/')
        text = text.replace("[shop]\n", f'[shop]\nscenarios = "{name}"\n', 1)
        text = text.replace('"recommendation_reason"', f'"{scenario}"')
        (folder / "shop.toml").write_text(text)
        (folder / "scenarios.toml").write_text(own)
        return folder

    return make


class Shop:
    """A merchant with scenarios of its own, asked by the server of this file."""

    def __init__(self, home, model, instruct):
        self.home, self.model, self.instruct = home, model, instruct
        self.restart()

    def restart(self):
        self.trainer = Trainer(self.home, model=self.model)
        self.trainer.model_for(self.model.spec)

    def ask(self, **given):
        reply = self.trainer.handle(self.instruct(SERVER, **{"recipe": RECIPE, **given}))
        key = load_or_create_key(self.home / "keys/signing.key").public_key()
        return reply, open_signed(Signed.from_bytes(reply), key, Report)[0]


@pytest.fixture
def make_shop(make_home, shop_folder, tiny_model, instruct):
    def make(*own, **given):
        folder = shop_folder(*own, **given)
        home = make_home(SERVER.public_key())
        replace(Merchant.load(home), data=str(folder)).save(home)
        return Shop(home, tiny_model, instruct)

    return make


@pytest.fixture
def seen(tiny_model, monkeypatch):
    """Every prompt whose loss or gradient the model computes, or that it writes for, in words."""
    prompts = []

    def listening(name):
        plain = getattr(type(tiny_model), name)

        def heard(self, rows, *args, **given):
            ids = [list(getattr(one, "ids", one)) for one in rows]
            prompts.extend(
                self.tokenizer.decode(one[: getattr(row, "n_prompt", len(one))])
                for one, row in zip(ids, rows, strict=True)
            )
            return plain(self, rows, *args, **given)

        monkeypatch.setattr(type(tiny_model), name, heard)

    listening("row_losses")
    listening("write")
    return prompts


def instructions():
    return [one.instruction for each in shipped().all.values() for one in each.languages().values()]


def of_own_words(prompts):
    assert prompts
    return all("Ware: " in one and any(mark in one for mark in MARKS) for one in prompts) and not (
        [one for one in prompts for text in instructions() if text in one]
    )


def test_nothing_the_client_reads_or_writes_has_a_shipped_instruction(make_shop, seen):
    shop = make_shop()
    replace(Merchant.load(shop.home), stop_at_rise=0.5).save(shop.home)
    shop.restart()
    shop.ask(stage="warmup")
    shop.ask()
    shop.ask(stage="personal", parent="sha256:1")
    evaluate(shop.trainer, rows=4, written=2)
    assert of_own_words(seen)


@pytest.mark.parametrize("objective", ["weighted", "preference"])
def test_feedback_on_a_scenario_of_ones_own_is_learnt_from_in_its_words(make_shop, objective):
    shop = make_shop()
    replace(Merchant.load(shop.home), feedback=objective).save(shop.home)
    asked = {"title": "Oak desk lamp", "scenario": "haiku", "tone": "smoky", "language": "en"}
    write_feedback(
        shop.home / FEEDBACK_FILE,
        [
            {
                "shopper": "new-1",
                "copy_id": id_,
                "kind": kind,
                "copy": {"text": id_, "request": asked},
            }
            for id_, kind in (("Warm.", "click"), ("Cold.", "impression"))
        ],
    )
    shop.restart()
    users = shop.trainer.study(shop.model.spec).users(RECIPE)
    words = [
        shop.model.tokenizer.decode(getattr(row, "chosen", row).ids)
        for rows in users
        for row in rows
    ]
    (met,) = [text for text in words if "Oak desk lamp" in text]
    assert "Write a haiku. Tone: of smoke." in met


def test_training_and_serving_ask_the_same_to_the_byte(make_shop, tmp_path):
    shop = make_shop(scenario="haiku")
    served = OwnScenarios(tmp_path / "served")
    served.put("shop-a", tmp_path / "own-shop/scenarios.toml")
    scenarios = served.of("shop-a")
    assert scenarios == shop.trainer.scenarios
    tokenizer, room = shop.model.tokenizer, RECIPE.max_prompt_tokens
    rows = [row for rows in shop.trainer.users.train for row in rows][:20]
    for row, learnt in zip(rows, shop.trainer.encode(rows, RECIPE), strict=True):
        given = {
            name: getattr(row.request, name)
            for name in (
                "title",
                "description",
                "category",
                "brand",
                "price",
                "shopper",
                "scenario",
            )
        }
        body = CopyBody(**given, language=row.request.language)
        asked = fit_prompt(tokenizer, body.request(scenarios), max_tokens=room, scenarios=scenarios)
        assert asked.ids(tokenizer) == list(learnt.ids[: learnt.n_prompt])
        plain = replace(row.request, scenario="recommendation_reason")
        assert asked.ids(tokenizer) != render_prompt(tokenizer, plain, max_tokens=room)


def test_the_file_stays_and_its_digest_goes_with_the_shops_own_adapter_alone(make_shop):
    shop = make_shop()
    reply, report = shop.ask()
    assert report.prompts == ""
    assert b"prompts" not in reply
    own, report = shop.ask(stage="personal", parent="sha256:1")
    assert report.prompts == shop.trainer.scenarios.prompts
    assert report.prompts.startswith("sha256:")
    for text in (b"one breath", b"haiku", b"smoky", b"scenarios.toml"):
        assert text not in reply + own


def test_scenarios_changed_in_a_run_leave_what_was_given_as_it_was(make_shop, tmp_path):
    shop, file = make_shop(), tmp_path / "own-shop/scenarios.toml"
    reply, _ = shop.ask()
    file.write_text(OWN.replace("one breath", "two breaths"))
    shop.restart()
    assert evaluate(shop.trainer, rows=2, written=1).other_prompts
    assert shop.ask()[0] == reply  # paid for and perhaps sent: what was given stands
    shop.ask(round=2, parent="sha256:1")
    assert not evaluate(shop.trainer, rows=2, written=1).other_prompts
    own, report = shop.ask(stage="personal", parent="sha256:2")
    file.write_text(OWN)
    shop.restart()
    assert shop.trainer.scenarios.prompts != report.prompts
    assert shop.ask(stage="personal", parent="sha256:2")[0] == own  # with what it was learnt with


def test_a_row_without_room_is_left_out_by_itself_and_the_server_hears_nothing_of_it(
    make_shop, caplog
):
    shop = make_shop()
    rows = [rows[0] for rows in shop.trainer.users.train[:3]]
    long = replace(rows[0], request=replace(rows[0].request, tone="ŵ" * 40))
    needs = len(shop.trainer.encode([INVENTED], RECIPE)[0].ids)
    tight = replace(RECIPE, max_prompt_tokens=needs + 30)
    encoder = Encoder(shop.trainer.scenarios)
    tokenizer = shop.model.tokenizer
    assert encoder.fitting(tokenizer, [long, *rows], tight) == rows
    assert encoder.encode(tokenizer, [long, *rows], tight) == encoder.encode(tokenizer, rows, tight)
    (noted,) = [record for record in caplog.records if record.message == "prompts_too_long"]
    assert (noted.scenario, noted.max_prompt_tokens) == ("recommendation_reason", needs + 30)
    none = replace(RECIPE, max_prompt_tokens=20)
    with pytest.raises(PolicyError, match="max_prompt_tokens=20 is too small for this shop's"):
        shop.ask(recipe=none)


@pytest.mark.parametrize(
    ("own", "error"),
    [
        ("[haiku]\n", r"shop\.scenarios: .*scenarios\.toml: haiku\.about: Field required"),
        ("[haiku\n", r"shop\.scenarios: .*scenarios\.toml: cannot be read .*line 1"),
        ('[tones]\nodd = { fr = "x" }\n', r"scenarios\.toml: tones\.odd: unknown key 'fr'"),
        (
            '[promotion]\nen = { instruction = "Write as to ann@example.org." }\n',
            r"shop\.scenarios: .*scenarios\.toml: holds personal data \(email\)",
        ),
    ],
)
def test_a_file_that_is_wrong_is_named_with_its_place(shop_folder, own, error):
    with pytest.raises(InputError, match=rf"shop\.toml: .*{error}"):
        read_description(shop_folder(own) / "shop.toml")


def test_a_scenario_is_one_of_the_shops_or_refused_with_those_there_are(shop_folder):
    assert read_description(shop_folder(scenario="haiku") / "shop.toml").info.scenario == "haiku"
    with pytest.raises(InputError, match=r"shop\.scenario: 'poem' is not one of .*haiku"):
        read_description(shop_folder(scenario="poem") / "shop.toml")
    with pytest.raises(InputError, match=r"shop\.scenarios: .*gone\.toml: cannot be read"):
        read_description(shop_folder(name="gone.toml") / "shop.toml")


def test_data_check_says_which_scenarios_are_in_use(shop_folder, shops, tmp_path):
    run = CliRunner()
    folder = shop_folder(scenario="haiku")
    page = ["--out", str(tmp_path / "page.html")]
    shown = run.invoke(app, ["data", "check", str(folder)]).output.replace("│", "")
    own = read_scenarios(folder / "scenarios.toml")
    assert f"scenarios.toml over the shipped ones; prompts {own.prompts[:19]}" in " ".join(
        shown.split()
    )
    facts = json.loads(run.invoke(app, ["data", "check", str(folder), "--json"]).output)["shops"][0]
    assert facts["scenarios"] == str(folder / "scenarios.toml")
    assert (facts["scenario"], facts["prompts"]) == ("haiku", own.prompts)
    assert run.invoke(app, ["data", "report", str(folder), *page]).exit_code == 0
    assert "scenarios.toml over the shipped ones" in (tmp_path / "page.html").read_text()
    plain = run.invoke(app, ["data", "check", str(shops / "shop-b")]).output.replace("│", "")
    assert "scenarios the shipped ones" in " ".join(plain.split())


def test_the_shops_of_a_market_may_share_scenarios_or_have_their_own(tmp_path):
    (tmp_path / "market.toml").write_text(
        'split_by = "shop"\n[shop]\nscenarios = "all.toml"\n[rows]\nfile = "copy.csv"\n'
        'user = "who"\nitem = "what"\ntitle = "title"\ntext = "copy"\n'
        '[shops.tea]\nscenarios = "tea.toml"\nscenario = "haiku"\n'
    )
    (tmp_path / "copy.csv").write_text("shop,who,what,title,copy\nbooks,u,p,t,c\ntea,u,p,t,c\n")
    (tmp_path / "all.toml").write_text('[promotion]\nen = { instruction = "Write briefly." }\n')
    (tmp_path / "tea.toml").write_text(OWN)
    books, tea = find_shops(tmp_path)
    asked = books.info.scenarios.get("promotion").languages()["en"].instruction
    assert (asked, books.info.scenario) == ("Write briefly.", "recommendation_reason")
    assert (tea.info.scenario, "haiku" in books.info.scenarios.all) == ("haiku", False)


def test_the_digest_is_of_what_prompts_are_made_of(tmp_path):
    def digest(text):
        file = tmp_path / "own.toml"
        file.write_text(text)
        return read_scenarios(file).prompts

    assert shipped().prompts == ""
    assert digest("# nothing of its own\n") == ""
    assert digest("[ad_headline]\nmax_tokens = 30\nrules = []\n") == ""  # asks the same
    assert digest(OWN) == digest("# the same\n" + OWN)
    changed = [
        ("one breath", "two breaths"),
        ("Ware: ", "Goods: "),
        ("of smoke", "smoke"),
        ("a haiku", "haiku"),
    ]
    assert len({digest(OWN), *(digest(OWN.replace(*pair)) for pair in changed)}) == 5

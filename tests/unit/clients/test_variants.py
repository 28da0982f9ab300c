"""Variants in a merchant's rounds: in the place of a row, of that row alone, for the same privacy."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from handbill.clients.feedback import Pair
from handbill.clients.merchant import LEDGER_FILE, Merchant
from handbill.clients.studies import CopyStudy
from handbill.clients.trainer import Trainer
from handbill.clients.variants import Variants
from handbill.errors import InputError
from handbill.federation.messages import Recipe
from handbill.generator.augment import Augmenter, words_of
from handbill.generator.prompts import CopyRequest, Example
from handbill.privacy.events import PrivateSteps
from handbill.privacy.ledger import Ledger
from handbill.privacy.noise import TestingNoise
from handbill.privacy.training import StepPlan, _groups, _sample

SERVER = Ed25519PrivateKey.generate()
RECIPE = Recipe(rounds=2, personal_steps=1, expected_users=8, clipping_norm=0.5)
# For words of most rows of the invented shops.
WORDS = {
    "warm": ("cosy",),
    "quiet": ("calm",),
    "good": ("fine",),
    "easy": ("simple",),
    "made": ("crafted",),
    "keeps": ("holds",),
    "long": ("extended",),
    "small": ("little",),
}


@pytest.fixture
def trainer(make_home, tiny_model, tmp_path):
    """A trainer of a shop: ``trainer(**merchant)``."""
    words = tmp_path / "synonyms.tsv"

    def make(folder="plain", **merchant):
        home = make_home(SERVER.public_key(), folder=tmp_path / folder)
        about = Merchant.load(home)
        replace(about, **merchant).save(home)
        made = Trainer(
            home, noise=TestingNoise(3, i_know_this_is_not_private=True), model=tiny_model
        )
        made.model_for(tiny_model.spec)
        return made

    texts = {row.text for rows in make("look").users.train for row in rows}
    often = Counter(word for text in texts for word in words_of([text]) if len(word) > 3)
    # A word of our own for each, so that most rows have variants.
    lines = [f"{word}\tx{word}" for word, _ in often.most_common(200)]
    words.write_text("\n".join(lines), "utf-8")
    make.words = str(words)
    return make


def anyhow(trainer):
    """Let synonyms be of any word: the catalogue has none of the invented ones."""
    words = {
        w: (f"x{w}",) for rows in trainer.users.train for r in rows for w in words_of([r.text])
    }
    trainer._variants = Variants(Augmenter(words), share=0.5)
    return trainer


def spent(trainer):
    """The ledger's events."""
    policy = trainer.policy
    path = trainer.home / LEDGER_FILE
    with Ledger(
        path, epsilon_limit=policy.epsilon_limit, delta=policy.delta, read_only=True
    ) as ledger:
        return [json.loads(row.event) for row in ledger.verify() if row.kind == "reserve"]


def test_the_ledger_counts_the_same_with_and_without(trainer, instruct):
    plain = trainer()
    varied = anyhow(trainer("varied"))
    for one in (plain, varied):
        one.handle(instruct(SERVER, recipe=RECIPE))
        one.handle(instruct(SERVER, recipe=RECIPE, round=2, parent="sha256:1"))
    assert len(spent(plain)) == 2
    assert spent(plain) == spent(varied)


def test_as_many_shoppers_are_sampled_with_as_many_rows_in_the_same_order(trainer, tiny_model):
    plain, varied = trainer(), anyhow(trainer("varied"))
    plan = StepPlan(
        event=PrivateSteps(noise_multiplier=1.0, sampling_rate=0.5, steps=1),
        clipping_norm=0.5,
        expected_users=8,
        rows_per_user=2,
        batch_rows=4,
        learning_rate=0.1,
    )
    chosen = []
    for one in (plain, varied):
        users = one.study(tiny_model.spec).users(RECIPE, label="r1")
        noise = TestingNoise(7, i_know_this_is_not_private=True)
        chosen.append(_sample(users, plan, noise))
        assert noise.uniform(1) == pytest.approx(noise_after(users, plan))
    rows, variants = chosen
    assert [len(some) for some in rows] == [len(some) for some in variants]
    assert [[r.weight for r in some] for some in rows] == [
        [r.weight for r in some] for some in variants
    ]
    pairs = [(a, b) for x, y in zip(rows, variants, strict=True) for a, b in zip(x, y, strict=True)]
    changed = sum(a != b for a, b in pairs)
    assert 0.2 * len(pairs) < changed < 0.8 * len(pairs)
    # A prompt says who and what: it is the row's own, so no variant is at another shopper.
    assert all(a.ids[: a.n_prompt] == b.ids[: b.n_prompt] for a, b in pairs)
    # Each shopper is clipped once, whatever was drawn.
    counted = [len({(n, u) for n, g in enumerate(_groups(some, 4, apart=False)) for b in g for u, _ in b})
               for some in chosen]  # fmt: skip
    assert counted == [len(rows)] * 2


def noise_after(users, plan):
    """What the noise gives next after sampling by hand: as many draws as rows there are."""
    noise = TestingNoise(7, i_know_this_is_not_private=True)
    sampled = np.flatnonzero(noise.uniform(len(users)) < plan.event.sampling_rate)
    for user in sampled:
        noise.uniform(len(users[int(user)]))
    return noise.uniform(1)


def test_a_variant_is_of_the_shoppers_own_row_whoever_else_there_is(trainer, tiny_model):
    made = anyhow(trainer())
    users = made.users
    alone = replace(users, train=users.train[3:4])
    whole = study_of(made, tiny_model, users).users(RECIPE, label="r1")
    one = study_of(made, tiny_model, alone, min_users=1).users(RECIPE, label="r1")
    assert list(whole[3]) == list(one[0])
    for rows, drawn in zip(users.train, whole, strict=True):
        for row, ids in zip(rows, drawn, strict=True):
            mine = [made._variants.drawn(row, "r1")]
            assert mine[0].user == row.user
            assert ids == made.encode(mine, RECIPE)[0]


def study_of(trainer, model, users, **policy):
    return CopyStudy(
        trainer.home,
        trainer.merchant,
        replace(trainer.policy, **policy),
        model=model,
        users=users,
        encode=trainer.encode,
        variants=trainer._variants,
    )


def test_another_round_draws_anew_and_the_same_round_the_same():
    variants = Variants(Augmenter(WORDS), share=0.5)
    rows = [
        Example(user=f"s{n}", item="1", request=CopyRequest(title="Jug"), text=f"A warm jug {n}.")
        for n in range(200)
    ]
    first = [variants.drawn(row, "r1") for row in rows]
    assert first == [variants.drawn(row, "r1") for row in rows]
    second = [variants.drawn(row, "r2") for row in rows]
    assert first != second
    changed = sum(a != b for a, b in zip(rows, first, strict=True))
    assert 60 < changed < 140  # binomial of 200 and a half: outside once in 1e8
    assert all(replace(a, text="") == replace(b, text="") for a, b in zip(rows, first, strict=True))
    never = Variants(Augmenter(WORDS), share=0.0)
    always = Variants(Augmenter(WORDS), share=1.0)
    assert [never.drawn(row, "r1") for row in rows] == rows
    assert all("cosy" in always.drawn(row, "r1").text for row in rows)


def test_who_is_measured_on_is_never_varied(trainer, tiny_model):
    plain, varied = trainer(), anyhow(trainer("varied"))
    varied._variants = Variants(varied._variants._augmenter, share=1.0)
    for what in ("held_out", "invented"):
        rows = [getattr(one.study(tiny_model.spec), what)(RECIPE) for one in (plain, varied)]
        assert rows[0] == rows[1]
    assert plain.users.held_out == varied.users.held_out


def test_the_warm_up_learns_from_variants_too(trainer, instruct):
    recipe = Recipe(warmup_rounds=1, warmup_rows=4, max_prompt_tokens=200)
    made = anyhow(trainer())
    words = {w: (f"x{w}",) for r in made.users.catalogue for w in words_of([r.text])}
    made._variants = Variants(Augmenter(words), share=1.0)
    made.handle(instruct(SERVER, stage="warmup", recipe=recipe))
    seen = {row.text for row, *_ in made._encoder._encoded}
    assert len(seen - {row.text for row in made.users.catalogue}) == 4


def test_pairs_of_feedback_are_left_as_they_are(trainer, tiny_model):
    made = anyhow(trainer())
    made._variants = Variants(made._variants._augmenter, share=1.0)
    (row, *rest), *others = made.users.train
    pair = Pair(row, replace(row, text="Passed over."))
    users = replace(made.users, with_feedback=((row, *rest, pair), *others))
    found = study_of(made, tiny_model, users).users(RECIPE, label="r1")
    assert found[0][0] == made.encode([row], RECIPE)[0]
    plain = [made.encode(rows, RECIPE) for rows in others]
    assert any(list(a) != b for a, b in zip(found[1:], plain, strict=True))


def test_a_synonym_is_a_word_of_the_catalogue_where_there_is_one(trainer):
    made = trainer(augment=1.0, synonyms=trainer.words)
    row = made.users.train[0][0]
    assert made._variants.drawn(row, "r1") == row  # no catalogue has a word that begins with an x
    free = Variants.of(made.merchant, [])
    assert any(free.drawn(r, "r1") != r for rows in made.users.train for r in rows)


def test_settings_that_say_nothing_sensible_are_refused(trainer):
    with pytest.raises(InputError, match=r"augment=1\.5 not in"):
        trainer(augment=1.5, synonyms=trainer.words)
    with pytest.raises(InputError, match="needs a file of synonyms"):
        trainer("a", augment=0.5)
    with pytest.raises(InputError, match="No such file"):
        trainer("b", augment=0.5, synonyms="nowhere.tsv")
    assert trainer("c")._variants is None

"""Generators trained from nothing: each learns eight rows by heart, resumes exactly, is saved and found again."""

import json
import shutil
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from handbill.errors import InputError
from handbill.generator.base_models import load_base, resolve_base
from handbill.generator.causal import CausalLearner, CausalSize, CausalWriter, Limits, new_causal
from handbill.generator.classic.cvae import Cvae, CvaeLearner
from handbill.generator.classic.gan import Gan, GanLearner
from handbill.generator.classic.kinds import ClassicWriter, encode, load_critic
from handbill.generator.classic.seq2seq import Seq2Seq, Seq2SeqLearner, Size
from handbill.generator.copies import Copy
from handbill.generator.echoes import without_echoes
from handbill.generator.fidelity import attribute_coverage
from handbill.generator.generators import load_writer, train_generator
from handbill.generator.pairs import vocabulary_texts
from handbill.generator.prompts import CopyRequest, turn_end_id
from handbill.generator.training import Schedule, train
from handbill.generator.vocabulary import train_tokenizer

COLOURS = ("红色", "白色", "黑色", "蓝色")
CLOTHS = ("棉", "羊毛")


def product(colour, cloth):
    return Copy(
        id=f"{colour}{cloth}",
        text=f"这件{colour}外套，{cloth}材质，穿着舒适。",
        request=CopyRequest(title="外套", language="zh", scenario="product_description"),
        attributes=(("颜色", colour), ("材质", cloth)),
    )


ROWS = [product(colour, cloth) for colour in COLOURS for cloth in CLOTHS]
END = "<|im_end|>"


@pytest.fixture(scope="module")
def tokenizer():
    torch.set_num_threads(1)
    return train_tokenizer(vocabulary_texts(ROWS), size=600, rarest=1, longest=6)


def seeded(make):
    torch.manual_seed(0)
    return make()


@pytest.fixture(scope="module")
def size(tokenizer):
    return Size(vocabulary=len(tokenizer), embedding=32, hidden=64, dropout=0.0)


def fit(learner, rows, folder, *, steps=160, learning_rate=2e-2):
    """Learn rows by heart; twenty steps between two checks."""
    plan = Schedule(
        epochs=steps // 20, batch_rows=len(rows), learning_rate=learning_rate, checks=1, patience=0
    )
    return train(learner, rows * 20, rows, plan, folder=folder)


@pytest.fixture(scope="module")
def learnt(tokenizer, size, tmp_path_factory):
    """A seq2seq that knows the eight rows by heart, and its rows."""
    network = seeded(lambda: Seq2Seq(size))
    rows = [encode(tokenizer, one) for one in ROWS]
    learner = Seq2SeqLearner(network, end=turn_end_id(tokenizer))
    progress = fit(learner, rows, tmp_path_factory.mktemp("seq2seq"))
    assert progress.best < 0.1
    return network, rows


def test_a_seq2seq_writes_its_rows_back(learnt, tokenizer):
    network, _ = learnt
    found = ClassicWriter(network, tokenizer, temperature=0.1).write(ROWS, n=2, seed=1)
    assert found == [[one.text] * 2 for one in ROWS]


def test_it_copies_words_it_never_wrote(learnt, tokenizer):
    """A colour that stands in no copy gets there by pointing at the fields."""
    network, _ = learnt
    one = encode(tokenizer, replace(product("绿色", "棉"), text="这件绿色外套"))
    read = network.read([one.source])
    inputs = torch.tensor([[turn_end_id(tokenizer), *one.target[:-1]]])
    targets = torch.tensor([one.target])
    with torch.no_grad():
        pointed = network.log_chances(read, inputs, targets).exp()[0]
        logits, _, gate, _ = network.parts(read, inputs, network.start(read))
    own = torch.softmax(logits, -1).gather(-1, targets[..., None])[0, :, 0] * gate[0]
    assert (pointed >= own * 0.999).all()
    assert (pointed - own).max() > 1e-4


def test_chances_of_the_next_token_add_up_to_one_and_agree_with_training(learnt, tokenizer):
    network, rows = learnt
    end = turn_end_id(tokenizer)
    read = network.read([rows[0].source])
    with torch.no_grad():
        state, before, total = network.start(read), end, 0.0
        for token in rows[0].target:
            chances, state = network.next_chances(read, torch.tensor([before]), state)
            assert float(chances.sum()) == pytest.approx(1.0, abs=1e-5)
            total += float(chances[0, token].log())
            before = token
        inputs = torch.tensor([[end, *rows[0].target[:-1]]])
        whole = network.log_chances(read, inputs, torch.tensor([rows[0].target])).sum()
    assert total == pytest.approx(float(whole), abs=1e-3)


def test_padding_changes_nothing(learnt):
    network, rows = learnt
    learner = Seq2SeqLearner(network, end=rows[0].target[-1])
    with torch.no_grad():
        alone = [learner.held_out_loss([row]) for row in rows]
        total, tokens = learner.held_out_loss(rows)
    assert total == pytest.approx(sum(loss for loss, _ in alone), rel=1e-4)
    assert tokens == sum(count for _, count in alone)


def test_the_autoencoder_uses_its_latent_variable(tmp_path):
    """One product with four texts: only the latent variable can tell which is written."""
    texts = ("这件外套穿着舒适。", "红色裙子，修身显瘦", "纯棉面料亲肤透气！", "复古印花大方得体")
    pairs = [replace(ROWS[0], text=text) for text in texts]
    tokenizer = train_tokenizer(vocabulary_texts(pairs), size=500, rarest=1, longest=6)
    shape = Size(vocabulary=len(tokenizer), embedding=32, hidden=64, latent=8, dropout=0.0)
    model = seeded(lambda: Cvae(shape))
    learner = CvaeLearner(model, end=turn_end_id(tokenizer))
    rows = [encode(tokenizer, one) for one in pairs]
    fit(learner, rows, tmp_path, steps=240, learning_rate=1e-2)
    use = learner.latent_use(rows)
    assert use["active_units"] >= 4
    assert use["latent_gain"] > 1.0
    written = ClassicWriter(model, tokenizer, temperature=0.1).write([pairs[0]] * 10, n=4, seed=0)
    begun = {text[:2] for some in written for text in some}
    assert len(begun & {text[:2] for text in texts}) >= 2


def test_the_discriminator_tells_copy_from_shuffled_copy(tokenizer, learnt, tmp_path):
    network, rows = learnt
    gan = seeded(lambda: Gan(network))
    optimizer = torch.optim.Adam(gan.discriminator.parameters(), lr=1e-2)
    draws = torch.Generator().manual_seed(0)

    def shuffled(ids):
        return [ids[i] for i in torch.randperm(len(ids), generator=draws).tolist()]

    people = [row.target[:-1] for row in rows]
    truth = torch.tensor([1.0] * 8 + [0.0] * 8)
    for _ in range(40):
        logits = gan.discriminator([*people, *map(shuffled, people)])
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    gan.eval()
    with torch.no_grad():
        right = gan.discriminator(people), gan.discriminator([*map(shuffled, people)])
    assert (right[0] > 0).float().mean() >= 0.9
    assert (right[1] < 0).float().mean() >= 0.9


def test_each_player_of_the_game_is_reached_by_its_own_loss_only(tokenizer, learnt):
    network, rows = learnt
    gan = seeded(lambda: Gan(network))
    learner = GanLearner(gan, end=turn_end_id(tokenizer), longest=20)

    def reached(progress):
        gan.zero_grad(set_to_none=True)
        learner.loss(rows, progress).backward()
        return {
            name.split(".")[0]
            for name, parameter in gan.named_parameters()
            if parameter.grad is not None and parameter.grad.abs().sum() > 0
        }

    assert reached(0.1) == {"discriminator"}
    assert reached(0.9) == {"discriminator", "network"}
    gan.zero_grad(set_to_none=True)


def test_a_training_that_was_cut_off_ends_like_one_that_was_not(tokenizer, size, tmp_path):
    rows = [encode(tokenizer, one) for one in ROWS]
    plan = Schedule(epochs=6, batch_rows=3, checks=1, patience=3)
    end = turn_end_id(tokenizer)

    def learner():
        return Seq2SeqLearner(seeded(lambda: Seq2Seq(replace(size, dropout=0.3))), end=end)

    whole = learner()
    expected = train(whole, rows, rows, plan, folder=tmp_path / "whole")

    class KilledError(Exception):
        pass

    said = []

    def die(line):
        said.append(line)
        if len(said) == 3:
            raise KilledError

    with pytest.raises(KilledError):
        train(learner(), rows, rows, plan, folder=tmp_path / "cut", say=die)
    again = learner()
    assert train(again, rows, rows, plan, folder=tmp_path / "cut") == expected
    for name, value in whole.module.state_dict().items():
        assert torch.equal(value, again.module.state_dict()[name]), name
    with pytest.raises(InputError, match="other data or settings"):
        train(learner(), rows, rows, replace(plan, seed=1), folder=tmp_path / "cut")
    (tmp_path / "cut" / "training.safetensors").write_bytes(b"no tensors")
    with pytest.raises(InputError, match="damaged"):
        train(learner(), rows, rows, plan, folder=tmp_path / "cut")


def test_training_stops_when_held_out_copy_gets_no_better(tokenizer, size, tmp_path):
    rows = [encode(tokenizer, one) for one in ROWS]
    other = [replace(row, target=row.target[::-1]) for row in rows]
    learner = Seq2SeqLearner(seeded(lambda: Seq2Seq(size)), end=turn_end_id(tokenizer))
    plan = Schedule(epochs=100, batch_rows=8, learning_rate=1e-2, checks=1, patience=3)
    progress = train(learner, rows, other, plan, folder=tmp_path)
    assert progress.step < 100
    losses = [loss for _, _, loss in progress.history]
    nats, tokens = learner.held_out_loss(other)
    assert nats / tokens == pytest.approx(min(losses), rel=1e-5)
    assert progress.best == min(losses) < losses[-1]


def many():
    return [replace(one, id=f"{n}-{one.id}") for n in range(12) for one in ROWS]


PLAN = Schedule(epochs=3, batch_rows=16, learning_rate=1e-2, checks=1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each kind, hardly trained."""
    root = tmp_path_factory.mktemp("generators")
    for kind, rate in (("causal", 3e-3), ("seq2seq", 1e-2), ("cvae", 1e-2)):
        plan = replace(PLAN, learning_rate=rate)
        train_generator(kind, many(), root / kind, schedule=plan, tokens=400)
    plan = replace(PLAN, patience=0)
    train_generator("gan", many(), root / "gan", schedule=plan, tokens=400, start=root / "seq2seq")
    return root


@pytest.mark.parametrize("kind", ["causal", "seq2seq", "cvae", "gan"])
def test_every_kind_is_found_again_and_writes_the_same_for_a_seed(folders, kind):
    card = json.loads((folders / kind / "generator.json").read_text())
    assert card["kind"] == kind
    assert card["pairs"] + card["held_out"] == 96
    assert not list((folders / kind).glob("training*"))
    products = [replace(one, text="") for one in ROWS[:3]]
    written = load_writer(str(folders / kind)).write(products, n=2, seed=3)
    assert [len(texts) for texts in written] == [2, 2, 2]
    assert load_writer(str(folders / kind)).write(products, n=2, seed=3) == written
    assert load_writer(str(folders / kind)).write(products, n=2, seed=4) != written
    with pytest.raises(InputError, match="holds a trained generator"):
        train_generator(kind, many(), folders / kind, schedule=PLAN, tokens=400)


@pytest.mark.parametrize("kind", ["causal", "seq2seq", "cvae", "gan"])
def test_every_kind_can_insist_on_the_attributes(folders, kind):
    products = [
        replace(one, text="", attributes=(("颜色", "紫色"), ("材质", "羊毛"))) for one in ROWS
    ]

    def stated(insist):
        texts = load_writer(str(folders / kind), insist=insist).write(products, n=2, seed=3)
        shares = [attribute_coverage(products[0], text) for some in texts for text in some]
        return sum(shares) / len(shares)

    assert stated(10.0) > stated(0.0) + 0.3
    assert stated(10.0) > 0.8


@pytest.mark.parametrize(
    ("text", "banned"),
    [
        ([], set()),
        ([5], {5}),
        ([5, 6, 5], {5, 6}),  # 5 at once again, and 5 6 again
        ([4, 5, 6, 7, 4, 5, 6], {6, 7}),
        ([5, 6, 7], {7}),
        ([1, 2, 1], set()),  # digits: 11 and 1212 are numbers
        ([1, 6, 1], {6}),
    ],
)
def test_a_run_of_tokens_is_not_said_again_at_once_but_digits_may_be(text, banned):
    scores = without_echoes(torch.zeros(1, 9), [text], repeatable={1, 2})
    assert {token for token in range(9) if scores[0, token] < -9} == banned


def test_a_causal_model_of_ours_does_not_say_a_run_twice_at_once(folders):
    model, tokenizer = load_base(resolve_base(str(folders / "causal")))

    def repeats(**how):
        writer = CausalWriter(model, tokenizer, temperature=0.01, **how)
        texts = [tokenizer(text).input_ids for some in writer.write(ROWS) for text in some]
        return sum(a == b for text in texts for a, b in pairwise(text))

    assert repeats() > 0
    assert repeats(echoes=False) == 0


def test_the_critic_is_a_gans(folders):
    critic = load_critic(folders / "gan")
    assert 0.0 < critic("这件红色外套") < 1.0
    assert 0.0 < critic("") < 1.0
    with pytest.raises(InputError, match="only a gan has a discriminator"):
        load_critic(folders / "seq2seq")
    with pytest.raises(InputError, match="no generator"):
        load_critic(folders / "nothing")


def test_a_causal_generator_is_a_base_model_like_any_other(folders):
    from handbill.generator.adapters import AdapterSpec
    from handbill.generator.lora import LoraModel

    base = resolve_base(str(folders / "causal"))
    model = LoraModel(base, AdapterSpec(rank=2, alpha=4.0, layers=(3,)))
    learner = CausalLearner(None, model.tokenizer, Limits())
    rows = [learner.encode(one) for one in ROWS]
    assert model.held_out_loss(rows) > 0
    assert len(model.write([list(rows[0].ids[: rows[0].n_prompt])], max_tokens=4)) == 1


def test_a_causal_model_writes_its_rows_back(tokenizer, tmp_path):
    small = CausalSize(layers=2, hidden=128, heads=4, inner=128)
    learner = CausalLearner(new_causal(tokenizer, small, seed=0), tokenizer, Limits())
    some = ROWS[::2]
    fit(learner, [learner.encode(one) for one in some], tmp_path, steps=300, learning_rate=3e-3)
    writer = CausalWriter(learner.module, tokenizer, temperature=0.1)
    assert writer.write(some, n=1, seed=0) == [[one.text] for one in some]


def test_an_untrained_causal_model_expects_what_it_has_seen(tokenizer):
    model = new_causal(tokenizer, CausalSize(layers=2, hidden=64, heads=2, inner=64), seed=0)
    seen = torch.arange(300, 308)
    with torch.no_grad():
        logits = model(seen[None]).logits[0, -1]
    assert len(set(logits.topk(8).indices.tolist()) & set(seen.tolist())) >= 3  # by chance 0.2


def test_a_causal_model_learns_to_copy_from_little(tokenizer, tmp_path):
    """Only the fields tell the cloth: who cannot copy ends at 0.31 nats a token, as random weights do here."""
    cloths = [a + b for a in "青橙紫灰粉" for b in "绒绸麻缎纱丝葛锦"]
    rows = [replace(product("红色", one), id=one) for one in cloths]
    tokenizer = train_tokenizer(vocabulary_texts(rows), size=900, rarest=1, longest=6)
    small = CausalSize(layers=2, hidden=64, heads=2, inner=64)
    learner = CausalLearner(new_causal(tokenizer, small, seed=0), tokenizer, Limits())
    plan = Schedule(epochs=15, batch_rows=20, learning_rate=5e-3, checks=1, patience=0)
    encoded = [learner.encode(one) for one in rows]
    assert train(learner, encoded * 4, encoded, plan, folder=tmp_path).best < 0.25


def test_a_training_ends_when_its_minutes_are_over(tmp_path):
    found = train_generator("seq2seq", many(), tmp_path / "x", schedule=PLAN, tokens=400, minutes=0)
    assert found.steps == 6  # one check, one epoch
    assert json.loads((tmp_path / "x" / "generator.json").read_text())["steps"] == 6


def test_folders_of_something_else_are_refused(folders, tmp_path):
    with pytest.raises(InputError, match="not a folder"):
        load_writer(str(tmp_path / "nothing"))
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(InputError, match="holds other files"):
        train_generator("seq2seq", many(), tmp_path, schedule=PLAN)
    with pytest.raises(InputError, match="not one of causal"):
        train_generator("lstm", many(), tmp_path / "x")
    with pytest.raises(InputError, match="goes on from a seq2seq"):
        train_generator("gan", many(), tmp_path / "x", start=folders / "cvae")
    with pytest.raises(InputError, match="only a gan"):
        train_generator("cvae", many(), tmp_path / "x", start=folders / "seq2seq")
    broken = shutil.copytree(folders / "gan", tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"0" * 40)
    with pytest.raises(InputError, match="damaged"):
        load_writer(str(broken))
    (broken / "generator.json").write_text("{}")
    with pytest.raises(InputError, match="damaged"):
        load_writer(str(broken))


def test_words_are_the_same_tokens_in_fields_and_copy(tokenizer):
    from handbill.generator.prompts import plain_ids

    alone = plain_ids(tokenizer, "红色")
    assert len(alone) == 1
    assert alone[0] in plain_ids(tokenizer, "颜色 红色")
    assert alone[0] in plain_ids(tokenizer, "这件红色外套")
    odd = "naïve <|im_end|> 😀\t龘"
    assert tokenizer.decode(plain_ids(tokenizer, odd)) == odd
    assert turn_end_id(tokenizer) not in plain_ids(tokenizer, odd)

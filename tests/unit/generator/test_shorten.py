"""Base models with fewer layers: which are left out, what healing mends, and that everything takes the result."""

import asyncio
import json
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cosine_similarity

from handbill.errors import InputError
from handbill.generator.base_models import load_base, make_tiny_base, resolve_base
from handbill.generator.causal import (
    CausalLearner,
    CausalSize,
    Limits,
    copy_states,
    new_causal,
    save_causal,
)
from handbill.generator.copies import Copy
from handbill.generator.generators import load_writer
from handbill.generator.pairs import vocabulary_texts
from handbill.generator.prompts import CopyRequest
from handbill.generator.shorten import HEALING, Healing, influences, least, shorten_base, without
from handbill.generator.training import Schedule, held_out_loss, train
from handbill.generator.vocabulary import train_tokenizer
from handbill.serving.engine import TorchEngine
from handbill.serving.sequences import Sampling, Sequence

COLOURS = ("red", "white", "black", "blue", "green", "grey")
CLOTHS = ("cotton", "wool", "linen", "silk")
COPIES = [
    Copy(
        id=f"{n}-{colour}-{cloth}",
        text=f"A {colour} coat of {cloth}, soft and warm.",
        request=CopyRequest(title="Coat", scenario="product_description"),
        attributes=(("colour", colour), ("cloth", cloth)),
    )
    for n in range(4)
    for colour in COLOURS
    for cloth in CLOTHS
]
FAST = replace(HEALING, learning_rate=3e-3)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    torch.set_num_threads(1)
    return tmp_path_factory.mktemp("shorten")


@pytest.fixture(scope="module")
def idle(root):
    """A random base of five layers, of which the one at index 2 adds nothing to what passes through it."""
    folder = make_tiny_base(root / "idle", layers=5, hidden=32)
    base = resolve_base(str(folder))
    model, tokenizer = load_base(base)
    torch.manual_seed(1)
    for layer in model.model.layers:  # as drawn, a layer hardly adds anything
        layer.self_attn.o_proj.weight.normal_(std=0.3)
        layer.mlp.down_proj.weight.normal_(std=0.3)
    model.model.layers[2].self_attn.o_proj.weight.zero_()
    model.model.layers[2].mlp.down_proj.weight.zero_()
    save_causal(model, tokenizer, folder)
    return resolve_base(str(folder))


@pytest.fixture(scope="module")
def learnt(root):
    """A base of five layers that has learnt the copy."""
    tokenizer = train_tokenizer(vocabulary_texts(COPIES), size=500, rarest=1)
    model = new_causal(tokenizer, CausalSize(layers=5, hidden=64, heads=4, inner=128), seed=0)
    learner = CausalLearner(model, tokenizer, Limits())
    rows = [learner.encode(one) for one in COPIES[:24]] * 10
    plan = Schedule(epochs=6, batch_rows=12, learning_rate=3e-3, patience=0)
    train(learner, rows, rows[:24], plan, folder=root / "training")
    save_causal(model, tokenizer, root / "learnt")
    return resolve_base(str(root / "learnt"))


@pytest.fixture(scope="module")
def healed(root, learnt):
    """The folder of the base with two layers left, what was found, and what was said."""
    said = []
    found = shorten_base(
        str(learnt.path), COPIES, root / "two", layers=2, steps=60, schedule=FAST, say=said.append
    )
    return root / "two", found, said


def encoded(tokenizer, copies=COPIES[:12]):
    return [CausalLearner(None, tokenizer, Limits()).encode(one) for one in copies]


def test_a_layer_that_adds_nothing_goes_first_and_nothing_changes(idle, root):
    found = shorten_base(str(idle.path), COPIES, root / "four", layers=4, steps=0)
    assert found.facts["shortened"]["dropped"] == [2]
    assert found.facts["shortened"]["influence"]["2"] == pytest.approx(0, abs=1e-6)
    whole, tokenizer = load_base(idle)
    short, _ = load_base(resolve_base(str(root / "four")))
    rows = encoded(tokenizer)
    with torch.no_grad():
        (expected, _), (got, _) = (copy_states(model, rows) for model in (whole, short))
        torch.testing.assert_close(short.lm_head(got), whole.lm_head(expected), atol=1e-5, rtol=0)
    loss = found.facts["shortened"]["held_out_loss"]
    assert loss == {"whole": loss["whole"], "cut": pytest.approx(loss["whole"], abs=1e-4)}


def test_influence_is_what_the_paper_says(idle):
    model, tokenizer = load_base(idle)
    rows = encoded(tokenizer)
    found = influences(model, rows)
    assert list(found) == [1, 2, 3]
    passed = {}
    for i, layer in enumerate(model.model.layers):
        layer.register_forward_hook(
            lambda _, given, out, i=i: passed.update({i: (given[0][0], out[0])})
        )
    similar = {i: [] for i in found}
    for row in rows:
        model(torch.tensor([row.ids]))
        here = slice(row.n_prompt - 1, len(row) - 1)
        for i in found:
            before, after = passed[i]
            similar[i] += cosine_similarity(before[here], after[here], dim=-1).tolist()
    for i, values in similar.items():
        assert found[i] == pytest.approx(1 - sum(values) / len(values), abs=1e-5)


@pytest.mark.parametrize("layers", [2, 3, 4])
def test_the_layers_with_the_least_influence_go_and_the_ends_stay(idle, layers):
    model, tokenizer = load_base(idle)
    influence = influences(model, encoded(tokenizer))
    dropped = least(influence, 5 - layers)
    assert len(dropped) == 5 - layers
    left = set(influence) - set(dropped)
    assert max(influence[i] for i in dropped) < min((influence[i] for i in left), default=9)
    short = without(model, dropped)
    kept = [i for i in range(5) if i not in dropped]
    assert kept[0] == 0
    assert kept[-1] == 4
    for layer, i in zip(short.model.layers, kept, strict=True):
        for name, value in layer.state_dict().items():
            assert torch.equal(value, model.model.layers[i].state_dict()[name])
    assert [layer.self_attn.layer_idx for layer in short.model.layers] == list(range(layers))


def test_kinds_of_layers_go_with_their_layers():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    kinds = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    small = {"hidden_size": 16, "intermediate_size": 16, "vocab_size": 20}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 4}
    config = Qwen2Config(
        **small, **heads, num_hidden_layers=4, layer_types=kinds, use_sliding_window=True
    )
    model = Qwen2ForCausalLM(config).eval()
    short = without(model, [1])
    assert short.config.layer_types == ["full_attention", "sliding_attention", "full_attention"]
    assert short.config.num_hidden_layers == 3
    assert model.config.num_hidden_layers == 4


def test_healing_lowers_the_held_out_loss(healed):
    folder, found, said = healed
    loss = found.facts["shortened"]["held_out_loss"]
    assert loss["healed"] < loss["cut"] - 0.1
    assert loss["healed"] < loss["whole"] + 0.05
    assert found.held_out_loss == pytest.approx(loss["healed"], abs=1e-4)
    assert said[0].startswith("learnt: 5 layers")
    assert sum(line.startswith("step ") for line in said) == HEALING.checks
    short, _ = load_base(resolve_base(str(folder)))
    assert len(short.model.layers) == 2


def test_healing_brings_the_distributions_nearer_and_leaves_the_vocabulary_alone(learnt, root):
    whole, tokenizer = load_base(learnt)
    short = without(whole, [1, 3])
    learner = Healing(short, tokenizer, whole)
    rows = encoded(tokenizer, COPIES[:24])
    before = float(learner.loss(rows, 0.0).detach())
    plan = replace(FAST, epochs=5, patience=0)
    train(learner, rows, rows, plan, folder=root / "nearer")
    assert float(learner.loss(rows, 1.0).detach()) < before / 2
    assert torch.equal(short.model.embed_tokens.weight, whole.model.embed_tokens.weight)
    same = Healing(without(whole, []), tokenizer, whole)
    assert float(same.loss(rows, 0.0).detach()) == pytest.approx(0, abs=1e-6)


def test_the_card_says_what_was_left_out_of_what(healed, learnt):
    folder, _, _ = healed
    card = json.loads((folder / "generator.json").read_text())
    assert card["kind"] == "causal"
    assert card["steps"] == 60
    about = card["shortened"]
    assert (about["base"], about["base_digest"]) == ("learnt", learnt.digest)
    assert (about["layers"], about["dropped"]) == (2, [1, 2, 3])
    assert set(about["influence"]) == {"1", "2", "3"}
    assert resolve_base(str(folder)).digest != learnt.digest
    assert not (folder / "training").exists()
    assert str(learnt.path) not in "".join(
        file.read_text() for file in folder.glob("*.json") if file.name != "tokenizer.json"
    )


def test_with_and_without_a_cache_it_writes_the_same(healed):
    model, tokenizer = load_base(resolve_base(str(healed[0])))
    ids = torch.tensor([encoded(tokenizer)[0].ids])[:, :30]
    written = [
        model.generate(ids, max_new_tokens=20, do_sample=False, use_cache=cached).tolist()
        for cached in (True, False)
    ]
    assert written[0] == written[1]
    assert len(written[0][0]) > 30


def test_the_engine_serves_it_as_transformers_computes_it(healed):
    base = resolve_base(str(healed[0]))
    model, tokenizer = load_base(base)
    row = encoded(tokenizer)[0]
    prompt = row.ids[: row.n_prompt]
    out = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)
    expected = tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True)
    engine = TorchEngine(*load_base(base), load=lambda _: None, max_batch=2, slots=1)

    async def write():
        asked = Sequence(
            tenant="shop", prompt=prompt, sampling=Sampling(max_tokens=12, temperature=0)
        )
        return "".join([delta.text async for delta in engine.submit(asked)])

    try:
        assert asyncio.run(write()) == expected
    finally:
        engine.close()


def test_it_writes_and_takes_adapters(healed):
    from handbill.generator.adapters import AdapterSpec, top_layers
    from handbill.generator.lora import LoraModel

    folder = str(healed[0])
    products = [replace(one, text="") for one in COPIES[:2]]
    written = load_writer(folder, temperature=0.1).write(products, n=1, seed=0)
    assert all("coat" in texts[0] for texts in written)
    base = resolve_base(folder)
    assert top_layers(base, 0) == (0, 1)
    model = LoraModel(base, AdapterSpec(rank=2, alpha=4.0, layers=(1,)))
    assert model.held_out_loss(encoded(model.tokenizer)) > 0


def test_healing_that_was_cut_off_ends_like_one_that_was_not(healed, learnt, root):
    class KilledError(Exception):
        pass

    def die(line):
        if line.startswith("step 30"):
            raise KilledError

    asked = {"layers": 2, "steps": 60, "schedule": FAST}
    with pytest.raises(KilledError):
        shorten_base(str(learnt.path), COPIES, root / "cut", **asked, say=die)
    assert [file.name for file in (root / "cut").iterdir()] == ["training"]
    with pytest.raises(InputError, match="other data or settings"):
        shorten_base(str(learnt.path), COPIES, root / "cut", **asked | {"layers": 3})
    again = shorten_base(str(learnt.path), COPIES, root / "cut", **asked)
    assert again.facts == healed[1].facts
    ends = [load_base(resolve_base(str(f)))[0].state_dict() for f in (healed[0], root / "cut")]
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name


def test_what_cannot_be_shortened_is_refused_before_anything_is_written(idle, root):
    def refused(match, name=str(idle.path), copies=COPIES, folder=root / "no", **asked):
        with pytest.raises(InputError, match=match):
            shorten_base(name, copies, folder, **({"layers": 3, "steps": 0} | asked))
        assert not (root / "no").exists()

    for layers in (-1, 0, 1, 5, 6):
        refused(rf"layers={layers} not in \[2, 4\]: idle has 5", layers=layers)
    refused("steps=-1 must not be negative", steps=-1)
    refused("no copy to learn from", copies=[replace(one, text="") for one in COPIES])
    refused("too few", copies=COPIES[:1])
    refused("not a folder", name=str(root / "nothing"))
    refused("holds other files", folder=idle.path)
    (root / "file").write_text("")
    refused("is a file", folder=root / "file")
    other = root / "gpt2"
    other.mkdir()
    (other / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    (other / "model.safetensors").write_bytes(b"")
    refused("gpt2 is a GPT2LMHeadModel: shortened are LlamaForCausalLM", name=str(other))


def test_held_out_loss_is_the_same_however_it_is_batched(learnt):
    model, tokenizer = load_base(learnt)
    learner = CausalLearner(model, tokenizer, Limits())
    rows = encoded(tokenizer)
    alone = [learner.held_out_loss([row]) for row in rows]
    expected = sum(loss for loss, _ in alone) / sum(count for _, count in alone)
    assert held_out_loss(learner, rows) == pytest.approx(expected, rel=1e-4)

import pytest
import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from handbill.errors import InputError
from handbill.serving.cache import PromptCache, SlotCache
from handbill.serving.llama import Llama, Span

THETA = {"rope_theta": 10_000.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
    **THETA,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, **THETA}


def make(kind=LlamaForCausalLM, config=LlamaConfig, **settings):
    settings = {
        "vocab_size": 96,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
        **settings,
    }
    torch.manual_seed(0)
    model = kind(config(**settings)).requires_grad_(False).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:  # else they start at 0 and 1
            parameter.copy_(torch.rand_like(parameter) + 0.5)
    return model


KNOWN = {
    "tied": {"tie_word_embeddings": True},
    "untied": {"tie_word_embeddings": False},
    "a head per key": {"num_key_value_heads": 6},
    "one key for all heads": {"num_key_value_heads": 1},
    "its own head size": {"head_dim": 32},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "another base": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "linear": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, **THETA}},
    "llama3": {"rope_parameters": LLAMA3},
    "yarn": {"rope_parameters": YARN},
    "mistral": {"kind": MistralForCausalLM, "config": MistralConfig, "sliding_window": None},
    "wide window": {"kind": MistralForCausalLM, "config": MistralConfig, "sliding_window": 100},
    "qwen2": {"kind": Qwen2ForCausalLM, "config": Qwen2Config},
    "qwen3": {"kind": Qwen3ForCausalLM, "config": Qwen3Config, "head_dim": 16},
}


@pytest.mark.parametrize("name", KNOWN)
def test_the_logits_are_those_of_transformers(name):
    model = make(**KNOWN[name])
    ids = torch.randint(96, (2, 60), generator=torch.Generator().manual_seed(1))
    wanted = model(input_ids=ids).logits
    ours = Llama(model, positions=64)
    running = SlotCache(ours.cache_shape, max_rows=2, max_positions=64)
    prompts = [PromptCache(ours.cache_shape, 50) for _ in ids]
    for start, stop in ((0, 30), (30, 49), (49, 50)):  # two prompts side by side, in pieces
        spans = [Span(prompt.extend(stop - start), {}) for prompt in prompts]
        count = stop - start
        found = ours.forward(ids[:, start:stop].flatten(), spans, range(2 * count))
        assert torch.allclose(found.view(2, count, -1), wanted[:, start:stop], atol=1e-4)
    for prompt in prompts:
        running.join(prompt)
    for at in range(50, 60):
        found = ours.forward(ids[:, at], [Span(running.extend(2), {})], [0, 1])
        assert torch.allclose(found, wanted[:, at], atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_near_to_float32_as_transformers_is(dtype):
    ids = torch.arange(40)
    exact = make()(input_ids=ids[None]).logits[0]
    model = make().to(dtype)
    theirs = (model(input_ids=ids[None]).logits[0].float() - exact).abs().max()
    ours = Llama(model, positions=64)
    prompt = PromptCache(ours.cache_shape, 40)
    for start, stop in ((0, 39), (39, 40)):
        found = ours.forward(ids[start:stop], [Span(prompt.extend(stop - start), {})], [0])
        assert found.dtype == dtype
        assert (found[0].float() - exact[start]).abs().max() < 1.5 * theirs


def test_nothing_is_chosen_in_the_middle_of_a_prompt():
    ours = Llama(make(), positions=64)
    spans = [Span(PromptCache(ours.cache_shape, 20).extend(10), {})]
    assert ours.forward(torch.arange(10), spans, []).shape == (0, 96)


def test_only_the_tokens_that_choose_get_logits():
    model = make()
    ids = torch.arange(20)
    wanted = model(input_ids=ids[None]).logits[0]
    ours = Llama(model, positions=64)
    found = ours.forward(ids, [Span(PromptCache(ours.cache_shape, 20).extend(20), {})], [3, 19])
    assert torch.allclose(found, wanted[[3, 19]], atol=1e-4)


REFUSED = {
    "GPT2LMHeadModel": lambda: GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2)),
    "hidden_act='gelu'": lambda: make(hidden_act="gelu"),
    "sliding_window=32": lambda: make(MistralForCausalLM, MistralConfig, sliding_window=32),
    "rope_type='dynamic'": lambda: make(
        rope_parameters={"rope_type": "dynamic", "factor": 2.0, **THETA}
    ),
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_model_that_is_computed_otherwise_is_refused(why):
    with pytest.raises(InputError, match=why):
        Llama(REFUSED[why](), positions=64)


def test_a_layer_that_is_not_plain_is_refused_by_name():
    class Quantised(nn.Linear):
        pass

    model = make()
    model.model.layers[1].mlp.up_proj = Quantised(48, 80, bias=False)
    with pytest.raises(InputError, match=r"layers.1.mlp.up_proj is a Quantised"):
        Llama(model, positions=64)


def test_no_weight_is_held_twice():
    model = make(tie_word_embeddings=False)
    Llama(model, positions=64)
    left = {name.rpartition(".")[0].rpartition(".")[2] for name, _ in model.named_parameters()}
    assert left == {"embed_tokens", "norm", "input_layernorm", "post_attention_layernorm"}

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.autograd.graph import saved_tensors_hooks
from transformers import LlamaConfig, LlamaForCausalLM

from handbill.generator.lean import keep_less


def model_of(dtype=torch.float32, **changes):
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        **changes,
    )
    torch.manual_seed(0)
    plain = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            if "norm" in name:
                parameter.uniform_(-2.0, 2.0)
    lora = LoraConfig(r=4, target_modules=["q_proj", "k_proj", "gate_proj", "down_proj"])
    model = get_peft_model(plain, lora).to(dtype)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    return model


def losses_and_gradients(model):
    rows = torch.arange(30).view(3, 10) % 64
    loss = model(input_ids=rows, labels=rows).loss
    trained = [p for p in model.parameters() if p.requires_grad]
    return loss.detach(), torch.autograd.grad(loss, trained)


def kept_bytes(model):
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    rows = torch.arange(30).view(3, 10) % 64
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(input_ids=rows).logits.sum()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    assert loss.requires_grad
    return sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in weights)


def test_losses_and_gradients_are_those_of_the_stock_model():
    stock, lean = model_of(), model_of()
    keep_less(lean)
    expected, found = losses_and_gradients(stock), losses_and_gradients(lean)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_less_is_kept_for_the_backward_pass():
    stock, lean = model_of(), model_of()
    keep_less(lean)
    tokens, layers, inner, hidden = 30, 2, 40, 24
    # silu(gate) and the product of each block, and the input of each norm (the first layer's is a leaf)
    saved = 4 * tokens * layers * (2 * inner + hidden)
    assert kept_bytes(stock) - kept_bytes(lean) >= saved


def test_gradients_are_exact_in_double_precision():
    norm = model_of(torch.float64).base_model.model.model.layers[0].input_layernorm
    block = model_of(torch.float64).base_model.model.model.layers[0].mlp
    keep_less(norm)
    keep_less(block)
    x = torch.randn(2, 3, 24, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, x)
    assert torch.autograd.gradcheck(block, x)


def test_attention_is_exact_in_double_precision():
    attention = model_of(torch.float64).base_model.model.model.layers[0].self_attn
    keep_less(attention)
    angle = torch.rand(1, 5, 3, dtype=torch.float64).repeat(1, 1, 2)
    x = torch.randn(2, 5, 24, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: attention(x, (angle.cos(), angle.sin()))[0], x)


def test_padded_rows_are_still_masked():
    stock, lean = model_of(), model_of()
    keep_less(lean)
    rows = torch.arange(30).view(3, 10)
    mask = torch.ones(3, 10, dtype=torch.int64)
    mask[0, :4] = 0
    expected, found = (m(input_ids=rows, attention_mask=mask).logits for m in (stock, lean))
    torch.testing.assert_close(found[0, 4:], expected[0, 4:])
    assert not torch.allclose(lean(input_ids=rows).logits[0, 4:], expected[0, 4:])


@pytest.mark.parametrize("changes", [{"attention_dropout": 0.1}, {"attn_implementation": "eager"}])
def test_attention_of_another_form_stays_as_it_is(changes):
    attention = model_of(**changes).base_model.model.model.layers[0].self_attn
    keep_less(attention)
    assert "forward" not in vars(attention)


@pytest.mark.parametrize("reason", ["trained", "a weight of 0", "half precision"])
def test_a_norm_that_could_not_be_taken_back_stays_as_it_is(reason):
    norm = model_of().base_model.model.model.norm
    if reason == "trained":
        norm.weight.requires_grad_(True)
    elif reason == "a weight of 0":
        norm.weight.data[3] = 0.0
    else:
        norm.to(torch.bfloat16)
    keep_less(norm)
    assert "forward" not in vars(norm)


def test_a_block_with_another_activation_stays_as_it_is():
    block = model_of(hidden_act="gelu").base_model.model.model.layers[0].mlp
    keep_less(block)
    assert "forward" not in vars(block)

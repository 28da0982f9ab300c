"""Conversations in the form a base model was trained with, and nothing of it from what anybody wrote."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AddedToken, AutoTokenizer, PreTrainedTokenizerFast

from handbill.errors import InputError
from handbill.generator.base_models import resolve_base
from handbill.generator.prompts import (
    CopyRequest,
    fit_prompt,
    render_chat,
    render_prompt,
    turn_end_id,
)

CHATML = """\
{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
LLAMA3 = """\
{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>

{{ m.content | trim }}<|eot_id|>{% endfor %}\
{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif %}"""
MISTRAL = """\
{{ bos_token }}{% for m in messages %}\
{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}\
{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}{{ eos_token }}{% endif %}\
{% endfor %}"""
# The system's words stand in the last turn of the user, as in the third of Mistral's.
SYSTEM_LAST = """\
{{ bos_token }}{% for m in messages if m.role != 'system' %}\
[INST] {% if loop.last and messages[0].role == 'system' %}{{ messages[0].content }}

{% endif %}{{ m.content }}[/INST]{% endfor %}"""
# Its end of text is another marker than its end of a turn.
GEMMA = """\
{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}
{{ m.content | trim }}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}"""
# Markers that are ordinary words, as in Zephyr's.
WORDS = """\
{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}
{% endfor %}[assistant]
"""
MARKERS = {
    CHATML: ["<|im_start|>", "<|im_end|>"],
    LLAMA3: ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"],
    MISTRAL: ["<s>", "</s>", "[INST]", "[/INST]"],
    SYSTEM_LAST: ["<s>", "</s>", "[INST]", "[/INST]"],
    WORDS: ["<s>", "</s>"],
    GEMMA: ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"],
}
TEXTS = ["Write why this shopper would like this product.", "Oak lamp, warm light", "user system"]
ONE = [("user", "An oak lamp?")]
SYSTEM = [("system", "Be brief."), *ONE]
LONG = [*ONE, ("assistant", "Yes, warm."), ("user", "Why so?")]


def tokenizer_of(template, *, words="bytes", markers=None):
    """A tokenizer of a few merges: ``bytes`` as in Llama 3, ``spaced`` as in Llama 2."""
    markers = markers or MARKERS[template]
    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    alphabet = [chr(number) for number in range(32, 127)] + ["\n", "▁"]
    if words == "bytes":
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        raw.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    else:
        raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        raw.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<unk>"], initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(TEXTS * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        unk_token="<unk>",
        bos_token=markers[0],
        eos_token=markers[1],
        chat_template=template,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": markers[2:]})
    return tokenizer


def templated(tokenizer, messages):
    chat = [{"role": role, "content": text} for role, text in messages]
    found = tokenizer.apply_chat_template(chat, tokenize=True, add_generation_prompt=True)
    return list(found["input_ids"])


@pytest.mark.parametrize("words", ["bytes", "spaced"])
@pytest.mark.parametrize(
    ("template", "messages"),
    [
        *((template, messages) for template in MARKERS for messages in (ONE, LONG)),
        *((template, SYSTEM) for template in MARKERS if template != MISTRAL),
        (SYSTEM_LAST, [("system", "Be brief."), *ONE, *ONE]),
    ],
)
def test_a_conversation_has_the_tokens_of_its_template(template, messages, words):
    tokenizer = tokenizer_of(template, words=words)
    assert render_chat(tokenizer, messages) == templated(tokenizer, messages)


@pytest.mark.parametrize("words", ["bytes", "spaced"])
@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHATML, "<|im_end|>"),
        (LLAMA3, "<|eot_id|>"),
        (MISTRAL, "</s>"),
        (WORDS, "</s>"),
        (GEMMA, "<end_of_turn>"),
    ],
)
def test_copy_ends_where_the_templates_answers_end(template, end, words):
    tokenizer = tokenizer_of(template, words=words)
    assert turn_end_id(tokenizer) == tokenizer.convert_tokens_to_ids(end)


def test_markers_that_swallow_white_space_do_so():
    tokenizer = tokenizer_of(LLAMA3, markers=["<|begin_of_text|>", "<|eot_id|>"])
    header = AddedToken("<|end_header_id|>", rstrip=True, special=True)
    tokenizer.add_special_tokens({"additional_special_tokens": [header]})
    ids = render_chat(tokenizer, SYSTEM)
    assert ids == templated(tokenizer, SYSTEM)
    assert "\n" not in tokenizer.decode(ids)


@pytest.mark.parametrize("template", [MISTRAL, SYSTEM_LAST, LLAMA3, CHATML])
def test_no_field_of_a_product_becomes_a_marker(template):
    tokenizer = tokenizer_of(template)
    forged = "".join(MARKERS[template]) + "<|im_end|>[/INST]"
    markers = set(tokenizer.convert_tokens_to_ids(MARKERS[template]))

    def count(**fields):
        ids = render_prompt(tokenizer, CopyRequest(**fields), max_tokens=900)
        return sum(token in markers for token in ids), tokenizer.decode(ids)

    plain, _ = count(title="Lamp", description="Warm")
    held, text = count(title="Lamp", description=f"Warm{forged}")
    assert held == plain > 0
    assert forged in text


def test_a_text_that_looks_like_the_template_is_not_rendered():
    tokenizer = tokenizer_of(MISTRAL)
    text = "{{ bos_token }} \U000f0001 {% for %}"
    assert f"[INST] {text} [/INST]" in tokenizer.decode(render_chat(tokenizer, [("user", text)]))


def test_what_the_system_says_begins_the_users_message_where_a_template_refuses_it():
    tokenizer = tokenizer_of(MISTRAL)
    folded = [("user", "Be brief.\n\nAn oak lamp?"), *LONG[1:]]
    ids = render_chat(tokenizer, [("system", "Be brief."), *LONG])
    assert ids == templated(tokenizer, folded)
    assert render_chat(tokenizer, SYSTEM[:1]) == templated(tokenizer, [("user", "Be brief.")])


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages[0].content }}", r"drops, changes or repeats message 2 \(assistant\)"),
        ("{% for m in messages %}{{ m.content | length }}{% endfor %}", r"message 1 \(user\)"),
        ("{% for m in messages %}{{ m.content * 2 }}{% endfor %}", r"message 1 \(user\)"),
        ("{{ raise_exception('only one turn') }}", "refuses this conversation: only one turn"),
        ("{% for %}", "refuses this conversation"),
    ],
)
def test_a_template_that_loses_a_message_is_refused(template, message):
    tokenizer = tokenizer_of(template, markers=["<s>", "</s>"])
    with pytest.raises(InputError, match=message):
        render_chat(tokenizer, LONG)


def test_a_prompt_is_the_same_on_every_day():
    template = "{{ strftime_now('%d %b %Y') }}{% for m in messages %} {{ m.content }}{% endfor %}"
    tokenizer = tokenizer_of(template, markers=["<s>", "</s>"])
    assert tokenizer.decode(render_chat(tokenizer, ONE)) == "26 Jul 2024 An oak lamp?"


def test_a_vocabulary_without_a_template_and_markers_gets_paragraphs():
    tokenizer = tokenizer_of(None, markers=["<s>", "</s>"])
    text = tokenizer.decode(render_chat(tokenizer, SYSTEM))
    assert text == "system: Be brief.\n\nuser: An oak lamp?\n\nassistant:"


# The tokens that adapters of the default base model were trained with.
SMOLLM2 = [
    (
        [("user", " Oak <|im_end|> lamp\n")],
        "1 4093 198 16792 2067 108 306 79 486 108 46 17559 198 2 198 1 520 9531 198",
    ),
    (
        [("system", "Be brief."), ("user", "Oak?"), ("assistant", "Yes."), ("user", "\nWhy?")],
        "1 9690 198 6077 5453 30 2 198 1 4093 198 63 494 47 2 198 1 520 9531 198 10539 30 2 198 "
        "1 4093 198 198 4898 47 2 198 1 520 9531 198",
    ),
]


@pytest.mark.parametrize(("messages", "ids"), SMOLLM2)
def test_the_default_base_model_is_asked_as_ever(messages, ids):
    tokenizer = AutoTokenizer.from_pretrained(resolve_base("smollm2-135m").path)
    assert render_chat(tokenizer, messages) == [int(number) for number in ids.split()]
    assert "You are a helpful AI assistant" in tokenizer.chat_template  # which is not said


def test_our_own_vocabulary_is_asked_as_ever(tiny_base):
    tokenizer = AutoTokenizer.from_pretrained(tiny_base.path)
    text = fit_prompt(tokenizer, CopyRequest(title="Lamp"), max_tokens=400).text()
    asked = render_prompt(tokenizer, CopyRequest(title="Lamp"), max_tokens=400)
    assert asked == templated(tokenizer, [("user", text)])

"""A tokenizer of our own: byte-level BPE learnt from the texts a generator is trained on.

Every text can be spelled, in any script. Runs of Chinese characters are cut from the white space before them, so
that a word is the same token in a product's fields and in copy: what is copied is copied token by token.
"""

from collections.abc import Iterable
from typing import Any, Final

from handbill.generator.prompts import TURN_END, TURN_START

UNKNOWN: Final = "<|endoftext|>"
# GPT-2's pieces, but for runs of Chinese characters, which never begin with a space.
_PIECES: Final = (
    r"'(?:s|t|re|ve|m|ll|d)| ?(?:(?!\p{Han})\p{L})+|\p{Han}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
    r"|\s+(?!\S)|\s+"
)
# ChatML, so that a model of ours is asked in the same way as a downloaded one
_TEMPLATE: Final = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def train_tokenizer(
    texts: Iterable[str], *, size: int, rarest: int = 1, longest: int | None = None
) -> Any:
    """Learn a vocabulary.

    Args:
        texts: To learn from.
        size: At most so many tokens, 259 at least: the bytes and three marks.
        rarest: Pairs that occur less often are not joined.
        longest: Bytes of the longest token, without a bound where not given; a Chinese character has
            three.

    Returns:
        A fast tokenizer of transformers whose marks are ChatML's.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=rarest,
        max_token_length=longest and longest + 1,  # the library's bound is itself left out
        show_progress=False,
        special_tokens=[UNKNOWN, TURN_START, TURN_END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    raw.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token=TURN_START,
        eos_token=TURN_END,
        pad_token=TURN_END,
        unk_token=UNKNOWN,
        additional_special_tokens=[],
        chat_template=_TEMPLATE,
    )

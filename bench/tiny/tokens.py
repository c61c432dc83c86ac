"""The tokenizer, its marks and the chat template."""

import re
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

VOCAB_SIZE = 4096
END, SYSTEM, USER, ASSISTANT = "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"
THINK, THOUGHT = "<think>", "</think>"

CHAT_TEMPLATE = """\
{%- for message in messages %}
{%- set role = 'system' if message.role == 'developer' else message.role %}
{%- if role not in ('system', 'user', 'assistant') %}
{{- raise_exception("this model knows the roles system, user and assistant, not '" ~ role ~ "'") }}
{%- endif %}
{%- if message.content is string %}
{%- set content = message.content %}
{%- else %}
{%- set parts = namespace(text='') %}
{%- for part in message.content or [] %}
{%- if part.type != 'text' %}
{{- raise_exception("this model reads text only, not '" ~ part.type ~ "'") }}
{%- endif %}
{%- set parts.text = parts.text ~ part.text %}
{%- endfor %}
{%- set content = parts.text %}
{%- endif %}
{%- if role == 'assistant' %}
{%- set content = content.split('</think>')[-1] | trim %}
{%- endif %}
{{- '<|' ~ role ~ '|>\\n' ~ content ~ '<|end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|assistant|>\\n' }}
{%- if enable_thinking is defined %}
{{- '<think>\\n' if enable_thinking else '<think>\\n</think>\\n\\n' }}
{%- endif %}
{%- endif %}
"""


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE; `<think>` and `</think>` are tokens that stay visible in the text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - 2,
        special_tokens=[END, SYSTEM, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    plain = re.compile("|".join(map(re.escape, (THINK, THOUGHT))))
    tokenizer.train_from_iterator((plain.sub("", text) for text in texts), trainer)
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in (THINK, THOUGHT)])
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    make: Any = PreTrainedTokenizerFast  # untyped
    made: PreTrainedTokenizerFast = make(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=16384,
    )
    return made

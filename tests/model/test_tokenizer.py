"""Text to ids and back, and conversations through the chat template."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer

from sloserve.engine.detokenize import Detokenizer
from sloserve.engine.tokenizer import Tokenizer
from sloserve.errors import BadInput
from sloserve.model.sources import resolve_source
from sloserve.model.tokenizer import RESERVED, HfTokenizer

TINY = resolve_source("builtin://tiny")
HELLO = [{"role": "user", "content": "Hello!"}]


@pytest.fixture(scope="module")
def tokenizer() -> HfTokenizer:
    """That of the model that ships."""
    return HfTokenizer(TINY)


@pytest.fixture(scope="module")
def spaced(tmp_path_factory: pytest.TempPathFactory) -> HfTokenizer:
    """A tokenizer of the SentencePiece kind: ▁ for spaces, a BOS, and no chat template."""
    folder = tmp_path_factory.mktemp("spaced")
    vocab = {"<s>": 0, "▁hello": 1, "▁world": 2, "!": 3, "<unk>": 4}
    backend = Backend(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 0)])
    backend.add_special_tokens(["<s>"])
    backend.enable_truncation(2)
    backend.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return HfTokenizer(folder)


def test_it_is_a_tokenizer_as_the_loop_wants_it(tokenizer: HfTokenizer) -> None:
    as_seen: Tokenizer = tokenizer
    assert as_seen.vocab_size == 4096


def test_it_tells_what_a_client_needs_to_tokenise_through_it(
    tokenizer: HfTokenizer, spaced: HfTokenizer
) -> None:
    told = tokenizer.info()
    assert told["eos_token"] is not None
    assert tokenizer.encode(told["eos_token"]) == [tokenizer.eos_id]
    assert told["chat_template"] == tokenizer.template
    assert (spaced.info()["bos_token"], spaced.info()["chat_template"]) == ("<s>", None)


@settings(deadline=None)
@given(text=st.text())
def test_any_text_comes_back(tokenizer: HfTokenizer, text: str) -> None:
    text = text.encode("utf-8", "ignore").decode()
    assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == text


@settings(deadline=None)
@given(ids=st.lists(st.integers(0, 4095), max_size=30))
def test_tokens_taken_one_by_one_make_the_text_that_they_decode_to(
    tokenizer: HfTokenizer, spaced: HfTokenizer, ids: list[int]
) -> None:
    assert (tokenizer.context_free, spaced.context_free) == (True, False)
    for skip in (True, False):
        detokenizer = Detokenizer(tokenizer, skip_special=skip)
        text = "".join(detokenizer.push(token_id) for token_id in ids) + detokenizer.flush()
        assert text == tokenizer.decode(ids, skip_special=skip)


def test_half_a_character_shows_as_a_replacement(tokenizer: HfTokenizer) -> None:
    ids = tokenizer.encode("漢")
    assert len(ids) > 1
    assert tokenizer.decode(ids[:1]) == "�"
    assert tokenizer.decode(ids) == "漢"


def test_thinking_stays_visible_and_the_end_does_not(tokenizer: HfTokenizer) -> None:
    ids = tokenizer.encode("<think>\nhm\n</think>\n\nyes<|end|>")
    assert tokenizer.decode(ids) == "<think>\nhm\n</think>\n\nyes"
    assert tokenizer.decode(ids, skip_special=False).endswith("yes<|end|>")
    assert [tokenizer.token_text(i) for i in ids][:2] == ["<think>", "\n"]
    (end,) = tokenizer.encode("<|end|>")
    (think,) = tokenizer.encode("<think>")
    assert end in tokenizer.special_ids
    assert think not in tokenizer.special_ids


def test_a_conversation_is_tokenised_as_transformers_does_it(tokenizer: HfTokenizer) -> None:
    messages: list[Any] = [
        {"role": "system", "content": "Answer briefly."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "!"}],
        },
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello."},
        {"role": "user", "content": "What is json?"},
    ]
    theirs = AutoTokenizer.from_pretrained(TINY).apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    ours = tokenizer.chat(messages)
    assert ours == theirs
    text = tokenizer.decode(ours, skip_special=False)
    assert text.endswith("<|user|>\nWhat is json?<|end|>\n<|assistant|>\n")
    assert "hm" not in text


def test_thinking_can_be_asked_for_and_left_out(tokenizer: HfTokenizer) -> None:
    def tail(**options: object) -> str:
        text = tokenizer.decode(tokenizer.chat(HELLO, **options), skip_special=False)
        return text.rpartition("<|assistant|>\n")[2]

    assert tail() == ""
    assert tail(enable_thinking=True) == "<think>\n"
    assert tail(enable_thinking=False) == "<think>\n</think>\n\n"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "tool", "content": "4"}], "system, user and assistant, not 'tool'"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "text only"),
    ],
)
def test_what_the_template_refuses_is_the_callers_mistake(
    tokenizer: HfTokenizer, messages: list[dict[str, object]], message: str
) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        tokenizer.chat(messages)
    assert caught.value.field == "messages"


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_a_request_may_not_change_how_templates_are_processed(
    tokenizer: HfTokenizer, name: str
) -> None:
    with pytest.raises(BadInput, match=f"'{name}' can't be set"):
        tokenizer.chat(HELLO, **{name: "x"})


def test_a_template_given_as_text_or_file_replaces_the_models_own(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    path = tmp_path / "template.jinja"
    path.write_text(template)
    for chosen in (template, str(path)):
        tokenizer = HfTokenizer(TINY, chat_template=chosen)
        assert tokenizer.decode(tokenizer.chat(HELLO)) == "user: Hello!\n"


def test_a_template_of_another_model_that_uses_loop_controls_is_taken() -> None:
    template = "{% for m in messages %}{% if not m.content %}{% continue %}{% endif %}x{% endfor %}"
    tokenizer = HfTokenizer(TINY, chat_template=template)
    assert tokenizer.decode(tokenizer.chat(HELLO)) == "x"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{% for m in messages %}", "is not a Jinja template"),
        ("/nowhere/template.jinja", "neither a Jinja template nor a file"),
    ],
)
def test_a_broken_template_is_refused_at_the_start(given: str, message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        HfTokenizer(TINY, chat_template=given)
    assert caught.value.field == "model.chatTemplate"


def test_a_template_that_can_not_cope_is_the_callers_mistake_too() -> None:
    tokenizer = HfTokenizer(TINY, chat_template="{{ messages[5].content }}")
    with pytest.raises(BadInput, match="the chat template refused"):
        tokenizer.chat(HELLO)


def test_a_model_without_a_template_says_what_to_use_instead(spaced: HfTokenizer) -> None:
    with pytest.raises(BadInput, match=r"/v1/completions.*--chat-template"):
        spaced.chat(HELLO)


def test_leading_spaces_of_single_tokens_are_kept(spaced: HfTokenizer) -> None:
    assert spaced.token_text(2) == " world"
    assert spaced.token_text(3) == "!"


def test_what_the_model_wants_around_a_text_is_added_or_not(spaced: HfTokenizer) -> None:
    assert spaced.encode("hello world") == [0, 1, 2]
    assert spaced.encode("hello world", add_special=False) == [1, 2]
    assert spaced.decode([0, 1, 2]) == "hello world"


def test_a_stored_truncation_does_not_cut_prompts(spaced: HfTokenizer) -> None:
    assert len(spaced.encode("hello world hello world", add_special=False)) == 4


def test_a_folder_whose_tokenizer_is_broken_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(BadInput, match="can't be loaded"):
        HfTokenizer(folder)

"""The tokenizer of a model folder, as the loop and the frontend need it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, TemplateError
from tokenizers import decoders
from transformers import AutoTokenizer

from sloserve.errors import BadInput

RESERVED = frozenset(
    {
        "chat_template",
        "conversation",
        "max_length",
        "padding",
        "processor_kwargs",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "tokenize",
        "tokenizer_kwargs",
        "truncation",
    }
)
"""What a request may not set about its template: not text, but how it is processed."""


class HfTokenizer:
    """
    A Hugging Face tokenizer; text and ids go straight through the `tokenizers` library.

    May be used by several threads at once. `chat_template` (Jinja, or the path of a file that
    holds it) replaces the folder's own. Raises BadInput for a folder without a usable tokenizer
    and for a template that is not Jinja.
    """

    def __init__(self, path: Path, *, chat_template: str | None = None) -> None:
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(
                path, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # every kind of tokenizer has errors of its own
            raise BadInput(
                f"the tokenizer in {path} can't be loaded: {error}", field="model.source"
            ) from error
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise BadInput(
                f"the tokenizer in {path} has no fast form; save it as tokenizer.json",
                field="model.source",
            )
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._texts: dict[int, str] = {}  # of single tokens: the logprobs of a prompt take many
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        self.context_free = isinstance(backend.decoder, decoders.ByteLevel)
        self.eos_id: int | None = self._tokenizer.eos_token_id
        self.special_ids = frozenset(
            token_id
            for token_id, token in backend.get_added_tokens_decoder().items()
            if token.special
        )
        if chat_template is not None:
            self._tokenizer.chat_template = _template(chat_template)
        own = self._tokenizer.chat_template or ""
        self.template = own if isinstance(own, str) else "\n".join(own.values())

    def same_tokens(self, other: "HfTokenizer") -> bool:
        """Whether both mean the same by every token id."""
        ids: dict[str, int] = self._backend.get_vocab(with_added_tokens=True)
        theirs: dict[str, int] = other._backend.get_vocab(with_added_tokens=True)
        return ids == theirs

    def encode(self, text: str, *, add_special: bool = True) -> list[int]:
        """Token ids of `text`; `add_special` adds what the model wants around it (BOS)."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=add_special).ids
        return ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of `ids`; incomplete UTF-8 shows as U+FFFD. Unknown ids are nothing."""
        text: str = self._backend.decode(ids, skip_special_tokens=skip_special)
        return text

    def token_text(self, token_id: int) -> str:
        """One token as text, for logprobs; its leading space is kept."""
        text = self._texts.get(token_id)
        if text is None:
            text = self.decode([token_id], skip_special=False)
            token = self._backend.id_to_token(token_id) or ""
            if token.startswith("▁") and not text.startswith(" "):
                text = f" {text}"
            self._texts[token_id] = text
        return text

    def chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> list[int]:
        """
        Token ids of a conversation, with the prompt for the assistant's turn added.

        `options` reach the template (`tools`, `enable_thinking`, ...). Raises BadInput when the
        template refuses, or the model has none.
        """
        refused = sorted(RESERVED & options.keys())
        if refused:
            raise BadInput(
                f"'{refused[0]}' can't be set by a request", field="chat_template_kwargs"
            )
        if not self._tokenizer.chat_template:
            raise BadInput(
                "this model has no chat template: use /v1/completions, or start it with "
                "--chat-template",
                field="messages",
            )
        if not options.get("continue_final_message"):
            options.setdefault("add_generation_prompt", True)
        try:
            text = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, **options
            )
        except Exception as error:  # a template is a program, run on what the client sent
            raise BadInput(f"the chat template refused them: {error}", field="messages") from error
        assert isinstance(text, str)
        return self.encode(text, add_special=False)

    def definition(self) -> str:
        """The tokenizer as a tokenizer.json, with what the folder's other files add."""
        text: str = self._backend.to_str()
        return text

    def info(self) -> dict[str, str | None]:
        """What a client that tokenises through us must know, named as in tokenizer_config.json."""
        known = self._tokenizer
        return {
            "tokenizer_class": type(known).__name__,
            "bos_token": known.bos_token,
            "eos_token": known.eos_token,
            "pad_token": known.pad_token,
            "unk_token": known.unk_token,
            "chat_template": self.template or None,
        }


def _template(given: str) -> str:
    """The template's text; what holds no brace is the path of a file."""
    text = given
    if "{" not in given:
        try:
            text = Path(given).expanduser().read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(
                f"'{given:.200}' is neither a Jinja template nor a file that can be read: {error}",
                field="model.chatTemplate",
            ) from error
    try:
        # parsed for its syntax only; transformers compiles it in a sandbox with its extensions
        Environment(extensions=["jinja2.ext.loopcontrols"]).parse(
            text.replace("{% generation %}", "").replace("{% endgeneration %}", "")
        )
    except TemplateError as error:
        raise BadInput(f"is not a Jinja template: {error}", field="model.chatTemplate") from error
    return text

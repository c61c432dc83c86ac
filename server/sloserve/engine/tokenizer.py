"""Text to tokens and back, as the loop and the frontend need it."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Tokenizer(Protocol):
    """A model's tokenizer. `sloserve.model` has the Hugging Face one."""

    vocab_size: int
    special_ids: frozenset[int]
    context_free: bool
    """Whether a text is its tokens' bytes one after the other, whatever stands beside each."""
    template: str  # the chat template's text, every one of them if there are several

    def encode(self, text: str, *, add_special: bool = True) -> list[int]:
        """Token ids of `text`."""
        ...

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of `ids`; incomplete UTF-8 shows as U+FFFD."""
        ...

    def token_text(self, token_id: int) -> str:
        """One token as text, for logprobs."""
        ...

    def chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> list[int]:
        """Token ids of a conversation, with the prompt for the assistant's turn added."""
        ...

    def definition(self) -> str | tuple[bytes, ...]:
        """The vocabulary, for grammars: a tokenizer.json, or one text per token."""
        ...

    def info(self) -> dict[str, str | None]:
        """What a client that tokenises through us must know, named as in tokenizer_config.json."""
        ...


class ByteTokenizer:
    """
    One token per UTF-8 byte, and three special ones: for models that are only simulated.

    A conversation becomes "role: content" lines.
    """

    specials = ("<|end|>", "<think>", "</think>")
    context_free = True
    template = ""

    def __init__(self) -> None:
        self.vocab_size = 256 + len(self.specials)
        self.special_ids = frozenset(range(256, self.vocab_size))
        self._id_of = {text: 256 + i for i, text in enumerate(self.specials)}
        self._split = re.compile("(" + "|".join(map(re.escape, self.specials)) + ")")

    def encode(self, text: str, *, add_special: bool = True) -> list[int]:
        """The bytes of `text`; a special token's text becomes that token. None are added."""
        ids: list[int] = []
        for part in self._split.split(text):
            special = self._id_of.get(part)
            ids += part.encode() if special is None else (special,)
        return ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of `ids`; what is not UTF-8 shows as U+FFFD."""
        parts: list[str] = []
        run = bytearray()
        for token_id in ids:
            if token_id < 256:
                run.append(token_id)
            elif not skip_special:
                parts.append(run.decode(errors="replace"))
                parts.append(self.specials[token_id - 256])
                run = bytearray()
        parts.append(run.decode(errors="replace"))
        return "".join(parts)

    def token_text(self, token_id: int) -> str:
        """One token as text, for logprobs."""
        return self.decode([token_id], skip_special=False)

    def chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> list[int]:
        """The messages as lines, and "assistant: " at the end."""
        lines = [f"{message['role']}: {message.get('content') or ''}\n" for message in messages]
        return self.encode("".join(lines) + "assistant: ")

    def definition(self) -> tuple[bytes, ...]:
        """The bytes, then the special tokens."""
        return (*(bytes([i]) for i in range(256)), *(text.encode() for text in self.specials))

    def info(self) -> dict[str, str | None]:
        """Its class and the token that ends an answer; there is no template."""
        return {
            "tokenizer_class": type(self).__name__,
            "bos_token": None,
            "eos_token": self.specials[0],
            "pad_token": None,
            "unk_token": None,
            "chat_template": None,
        }

"""Text to tokens and back, as the loop and the frontend need it."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Tokenizer(Protocol):
    """A model's tokenizer. `sloserve.model` has the Hugging Face one."""

    vocab_size: int
    special_ids: frozenset[int]

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

"""Prompt lengths before anybody has tokenised."""


class TokensPerCharacter:
    """
    The running mean of tokens per character: the ratio of two decaying sums.

    Starts at a quarter (English with a common vocabulary) with the weight of `prior_chars`
    characters, and forgets with a half life of about 70 prompts.
    """

    __slots__ = ("_chars", "_tokens")
    DECAY = 0.99

    def __init__(self, *, initial: float = 0.25, prior_chars: float = 1000.0) -> None:
        self._tokens = initial * prior_chars
        self._chars = prior_chars

    def observe(self, num_chars: int, num_tokens: int) -> None:
        """A prompt of `num_chars` characters had `num_tokens` tokens."""
        if num_chars > 0 and num_tokens > 0:
            self._tokens = self._tokens * self.DECAY + num_tokens
            self._chars = self._chars * self.DECAY + num_chars

    @property
    def ratio(self) -> float:
        """Tokens per character."""
        return self._tokens / self._chars

    def tokens(self, num_chars: int) -> int:
        """The estimate for a prompt, at least 1."""
        return max(1, round(num_chars * self._tokens / self._chars))

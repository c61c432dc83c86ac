"""How a request wants its tokens chosen."""

from dataclasses import dataclass, field

from sloserve.grammar.matcher import Grammar


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """
    Sampling of one sequence. The defaults are OpenAI's.

    temperature 0 is greedy. `logprobs` is the number of alternatives to report beside the
    chosen token (None: no logprobs at all). `prompt_logprobs` likewise for the prompt (`echo`).
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    max_tokens: int = 16
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    include_stop: bool = False
    skip_special_tokens: bool = True
    suppress: tuple[int, ...] = ()  # token ids that are never drawn
    suppress_first: tuple[int, ...] = ()  # nor as the first token
    grammar: Grammar | None = None
    grammar_after: str | None = None  # free until this marker is complete, as `</think>`

"""One request inside the engine: from sampled tokens to visible output and its end."""

from sloserve.engine.detokenize import Detokenizer
from sloserve.engine.events import Chunk, Generate
from sloserve.engine.runner import Logprobs, ModelFacts, Sampled
from sloserve.engine.stages import StageTracker
from sloserve.engine.stops import StopFinder
from sloserve.engine.tokenizer import Tokenizer
from sloserve.scheduler import Outcome, Request

CONTEXT_TOKENS = 4
"""Prompt tokens before the answer that decide about its leading space."""


class Generation:
    """What the loop knows of a request beside the scheduler's state."""

    __slots__ = (
        "_detokenizer",
        "_end_ids",
        "_prompt_logprobs",
        "_stages",
        "_stops",
        "generate",
        "request",
    )

    def __init__(
        self,
        generate: Generate,
        request: Request,
        *,
        facts: ModelFacts,
        tokenizer: Tokenizer,
        lengths: dict[tuple[int, bool], int],
    ) -> None:
        """`lengths` is shared by all of one tokenizer (`Detokenizer`)."""
        sampling = generate.sampling
        self.generate = generate
        self.request = request
        self._detokenizer = Detokenizer(
            tokenizer,
            before=generate.prompt[-CONTEXT_TOKENS:],
            skip_special=sampling.skip_special_tokens,
            lengths=lengths,
        )
        self._stops = StopFinder(sampling.stop, include=sampling.include_stop)
        self._stages = StageTracker(generate.promise.stages, tokenizer)
        self._prompt_logprobs: list[Logprobs] = []
        eos_ids = () if sampling.ignore_eos else facts.eos_ids
        self._end_ids = frozenset((*eos_ids, *sampling.stop_token_ids))

    def hold_prompt(self, sampled: Sampled) -> None:
        """Keep the logprobs of a prompt chunk for the first chunk of output."""
        self._prompt_logprobs += sampled.prompt

    def accept(self, sampled: Sampled, *, at_s: float) -> tuple[Chunk, Outcome]:
        """The sampled token as an event for the client, and as an outcome for the scheduler."""
        token_id = sampled.token_id
        assert token_id is not None
        sampling = self.generate.sampling
        num_output = self.request.num_output + 1
        may_stop = num_output >= sampling.min_tokens
        stage, next_stage = self._stages.push(token_id)
        finish_reason: str | None = None
        stop_reason: str | int | None = None
        ends = may_stop and token_id in self._end_ids
        text = "" if ends and not sampling.include_stop else self._detokenizer.push(token_id)
        text, stop = self._stops.push(text, active=may_stop)
        if stop is not None:
            finish_reason, stop_reason = "stop", stop
        elif ends:
            finish_reason = "stop"
            stop_reason = token_id if token_id in sampling.stop_token_ids else None
        elif num_output >= self.request.max_output:
            finish_reason = "length"
        if finish_reason is not None and stop is None:
            text += self._flush(active=may_stop)
        prompt_logprobs, self._prompt_logprobs = tuple(self._prompt_logprobs), []
        chunk = Chunk(
            text=text,
            token_ids=(token_id,),
            stage=stage,
            emitted_s=at_s,
            num_output=num_output,
            num_cached=self.request.num_cached,
            logprobs=() if sampled.logprobs is None else (sampled.logprobs,),
            prompt_logprobs=prompt_logprobs,
            finish_reason=finish_reason,
            stop_reason=stop_reason,
        )
        outcome = Outcome(
            token_id=token_id,
            finished=finish_reason is not None,
            stage=stage,
            next_stage=next_stage,
        )
        return chunk, outcome

    def _flush(self, *, active: bool) -> str:
        text, stop = self._stops.push(self._detokenizer.flush(), active=active)
        return text if stop is not None else text + self._stops.flush()

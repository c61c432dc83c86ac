"""One request inside the engine: from sampled tokens to visible output and its end."""

from collections.abc import Sequence

from sloserve.engine.detokenize import Detokenizer
from sloserve.engine.events import Chunk, Generate
from sloserve.engine.runner import Logprobs, ModelFacts, Sampled
from sloserve.engine.stages import StageTracker
from sloserve.engine.stops import StopFinder
from sloserve.engine.tokenizer import Tokenizer
from sloserve.grammar.matcher import Matcher
from sloserve.scheduler import Outcome, Request
from sloserve.slo import Stage

CONTEXT_TOKENS = 4
"""Prompt tokens before the answer that decide about its leading space."""


class Generation:
    """What the loop knows of a request beside the scheduler's state."""

    __slots__ = (
        "_detokenizer",
        "_end_ids",
        "_free",
        "_matcher",
        "_prompt_logprobs",
        "_stages",
        "_stops",
        "adapter",
        "key",
        "request",
        "sampling",
    )

    def __init__(
        self,
        generate: Generate,
        request: Request,
        *,
        facts: ModelFacts,
        tokenizer: Tokenizer,
        texts: dict[tuple[int, bool], str],
    ) -> None:
        """`texts` is shared by all of one tokenizer (`Detokenizer`)."""
        sampling = generate.sampling
        self.key = generate.key
        self.adapter = generate.adapter
        self.sampling = sampling
        self.request = request
        self._detokenizer = Detokenizer(
            tokenizer,
            before=generate.prompt[-CONTEXT_TOKENS:],
            skip_special=sampling.skip_special_tokens,
            texts=texts,
        )
        self._stops = StopFinder(sampling.stop, include=sampling.include_stop)
        stages = generate.promise.stages
        self._stages = StageTracker(stages, tokenizer) if len(stages) > 1 else None
        self._matcher = None if sampling.grammar is None else sampling.grammar.matcher()
        self._free = _free_until(sampling.grammar_after, tokenizer) if self._matcher else None
        self._prompt_logprobs: list[Logprobs] = []
        eos_ids = () if sampling.ignore_eos else facts.eos_ids
        self._end_ids = frozenset((*eos_ids, *sampling.stop_token_ids))

    @property
    def matcher(self) -> Matcher | None:
        """What the coming token must fit; None: no grammar, or the answer is not there yet."""
        return None if self._free is not None else self._matcher

    @property
    def failure(self) -> str:
        """Why the grammar can't go on; empty as long as it can."""
        return "" if self._matcher is None else self._matcher.failure

    def num_fitting(self, drafts: Sequence[int]) -> int:
        """How many drafts, from the first on, the grammar allows; an end is none worth trying."""
        matcher = self.matcher
        return len(drafts) if matcher is None else matcher.num_worth(drafts)

    def hold_prompt(self, sampled: Sampled, *, start: int) -> None:
        """
        Keep the logprobs of the prompt's chunk from `start` on for the first chunk of output.

        One that gave way computes its prompt again: what it told before counts no more, and once
        there was output nothing is told twice.
        """
        if not self.request.row.num_output:
            self._prompt_logprobs[start:] = sampled.prompt

    def accept(self, sampled: Sampled, *, at_s: float) -> tuple[list[Chunk], Outcome]:
        """
        What was sampled as events for the client, and as an outcome for the scheduler.

        Tokens that come together share a chunk as long as their stage goes on. What follows an
        end (a stop string in the middle of accepted drafts) is dropped, and so is what follows
        the marker from which on the grammar binds: it was drawn without one, and will be again.
        """
        num_output = self.request.row.num_output + 1
        if not sampled.num_drafted:
            chunk, outcome = self._accept_one(sampled, num_output, at_s=at_s)
            return [chunk], outcome
        chunks: list[Chunk] = []
        outcomes: list[Outcome] = []
        for number, one in enumerate((*sampled.accepted, sampled), num_output):
            was_free = self._free is not None
            chunk, outcome = self._accept_one(one, number, at_s=at_s)
            outcomes.append(outcome)
            if chunks and chunks[-1].stage == chunk.stage:
                _merge(chunks[-1], chunk)
            else:
                chunks.append(chunk)
            if outcome.finished or self.failure or (was_free and self._free is None):
                break
        last = outcomes.pop()
        last.earlier = tuple(outcomes)
        last.num_drafted, last.num_accepted = sampled.num_drafted, len(sampled.accepted)
        return chunks, last

    def _accept_one(
        self, sampled: Sampled, num_output: int, *, at_s: float
    ) -> tuple[Chunk, Outcome]:
        """Output token number `num_output`."""
        token_id = sampled.token_id
        assert token_id is not None
        sampling, request = self.sampling, self.request
        may_stop = num_output >= sampling.min_tokens
        stage, next_stage = 0, None
        if self._stages is not None:
            stage, next_stage = self._stages.push(token_id)
        finish_reason: str | None = None
        stop_reason: str | int | None = None
        ends = may_stop and token_id in self._end_ids
        complete = False
        if self._matcher is not None:
            complete = self._match(token_id)
            ends = ends or (complete and self._matcher.is_end(token_id))
        text = "" if ends and not sampling.include_stop else self._detokenizer.push(token_id)
        stop: str | None = None
        if sampling.stop:
            text, stop = self._stops.push(text, active=may_stop)
        if stop is not None:
            finish_reason, stop_reason = "stop", stop
        elif ends:
            finish_reason = "stop"
            stop_reason = token_id if token_id in sampling.stop_token_ids else None
        elif complete:
            finish_reason = "stop"
        elif num_output >= request.max_output:
            finish_reason = "length"
        if finish_reason is not None and stop is None:
            text += self._flush(active=may_stop)
        chunk = Chunk(text, (token_id,), stage, at_s, num_output, request.num_cached)
        if sampled.logprobs is not None:
            chunk.logprobs = (sampled.logprobs,)
        if self._prompt_logprobs:
            chunk.prompt_logprobs, self._prompt_logprobs = tuple(self._prompt_logprobs), []
        if finish_reason is not None:
            chunk.finish_reason, chunk.stop_reason = finish_reason, stop_reason
            chunk.num_preempted = request.num_preemptions
        return chunk, Outcome(token_id, finish_reason is not None, stage, next_stage)

    def _match(self, token_id: int) -> bool:
        """Move on in the grammar; whether it allows nothing more, so that the answer ends."""
        assert self._matcher is not None
        if self._free is not None:
            _, next_stage = self._free.push(token_id)
            if next_stage is not None:
                self._free = None
            return False
        self._matcher.accept(token_id)
        return self._matcher.ended

    def _flush(self, *, active: bool) -> str:
        text, stop = self._stops.push(self._detokenizer.flush(), active=active)
        return text if stop is not None else text + self._stops.flush()


def _merge(chunk: Chunk, more: Chunk) -> None:
    """Add to a chunk the one that follows it at the same time and in the same stage."""
    chunk.text += more.text
    chunk.token_ids += more.token_ids
    chunk.num_output = more.num_output
    chunk.logprobs += more.logprobs
    chunk.prompt_logprobs += more.prompt_logprobs
    chunk.finish_reason, chunk.stop_reason = more.finish_reason, more.stop_reason
    chunk.num_preempted = more.num_preempted


def _free_until(marker: str | None, tokenizer: Tokenizer) -> StageTracker | None:
    """Finds the marker, up to which a grammar does not bind."""
    if marker is None:
        return None
    return StageTracker((Stage("free", 1.0, until=marker), Stage("bound", 1.0)), tokenizer)

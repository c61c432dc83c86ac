"""From chunks to OpenAI's choices: events while they come, or one answer at the end."""

from dataclasses import dataclass, field, replace

from sloserve.engine.events import Broken, Chunk
from sloserve.engine.runner import Logprobs
from sloserve.engine.tokenizer import Tokenizer
from sloserve.frontend.sequences import Job, broken
from sloserve.frontend.speech import Manner, Speech
from sloserve.http import sse
from sloserve.http.answers import Answers, Choice, TokenLogprob, Usage, encode
from sloserve.http.bodies import ChatBody, CompletionBody
from sloserve.http.errors import refusal


@dataclass(slots=True)
class _Part:
    """What has come of one choice."""

    text: str = ""
    text_length: int = 0
    num_output: int = 0
    num_cached: int = 0
    num_preempted: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    echoed: bool = False
    speech: Speech | None = None  # None: all of it is text


class Choices:
    """
    The answer to one body. `event` for streams, `collect` and `whole` otherwise.

    With `echo` and `max_tokens` 0 the engine draws one token, which is not shown.
    """

    def __init__(
        self, body: ChatBody | CompletionBody, jobs: list[Job], tokenizer: Tokenizer,
        *, request_id: str, model: str, annotate: bool, manner: Manner,
    ) -> None:  # fmt: skip
        self.request_id = request_id
        self._answers = Answers(request_id=request_id, model=model, chat=isinstance(body, ChatBody))
        self._tokenizer = tokenizer
        self._splits = manner.thinking is not None
        self._parts = [_Part(speech=None if manner.plain else Speech(manner)) for _ in jobs]
        self._annotate = annotate
        self._echo = isinstance(body, CompletionBody) and bool(body.echo)
        self._only_echo = isinstance(body, CompletionBody) and body.max_output == 0
        self._logprobs = body.logprobs is not None and body.logprobs is not False  # 0 is a number
        options = body.stream_options
        self._usage_last = bool(options and options.include_usage)
        self._usage_always = bool(options and options.continuous_usage_stats)
        self._num_open = len(jobs)
        num_choices = body.num_choices
        self._prompts = [len(job.prompt.tokens) for job in jobs[::num_choices]]

    @property
    def all_done(self) -> bool:
        """Whether every choice has its finish reason."""
        return self._num_open == 0

    @property
    def finish_reasons(self) -> list[str]:
        """Of the choices that have one."""
        return [part.finish_reason for part in self._parts if part.finish_reason]

    @property
    def num_preempted(self) -> int:
        """How often their sequences gave way to others, of the choices that ended."""
        return sum(part.num_preempted for part in self._parts)

    @property
    def num_prompt(self) -> int:
        """Prompt tokens; a prompt with several answers counts once."""
        return sum(self._prompts)

    def event(self, job: Job, chunk: Chunk, *, num_new: int) -> bytes:
        """The events of a chunk; empty when it says nothing. The last one brings `[DONE]`."""
        choice = self._take(job, chunk)
        if not choice.text and not num_new and not choice.finish_reason:
            return b""
        first, *more = self._spoken(choice, num_new=num_new)
        usage = self.usage() if self._usage_always else None
        data = self._answers.chunk(first, usage=usage, usage_field=self._usage_last)
        if self._annotate:
            out = sse.annotated(data, num_tokens=num_new, stage=chunk.stage)
        else:
            out = sse.event(data)
        for part in more:  # of the same tokens
            data = self._answers.chunk(part, usage=usage, usage_field=self._usage_last)
            out += sse.event(data)
        if self.all_done:
            if self._usage_last:
                out += sse.event(self._answers.usage(self.usage()))
            out += sse.DONE
        return out

    def lost(self, index: int, event: Broken) -> bytes:
        """The end of a stream that broke: finish_reason "error", the error, `[DONE]`."""
        choice = Choice(index, "", finish_reason="error")
        data = self._answers.chunk(choice, usage=None, usage_field=self._usage_last)
        error = refusal(broken(event)).error
        return sse.event(data) + sse.event(encode({"error": error})) + sse.DONE

    def collect(self, job: Job, chunk: Chunk) -> None:
        """Keep a chunk for `whole`."""
        part = self._parts[job.index]
        num_new = chunk.num_output - part.num_output
        choice = self._take(job, chunk)
        if part.speech is not None:
            self._spoken(choice, num_new=num_new)
        part.text += choice.text
        part.logprobs.extend(choice.logprobs or ())

    def whole(self) -> bytes:
        """The answer that is not streamed."""
        choices = [
            Choice(
                index=i,
                text=part.text,
                finish_reason=part.finish_reason,
                stop_reason=part.stop_reason,
                logprobs=tuple(part.logprobs) if self._logprobs else None,
                said=None if part.speech is None else part.speech.message(),
            )
            for i, part in enumerate(self._parts)
        ]
        return self._answers.whole(choices, self.usage())

    def usage(self) -> Usage:
        """Tokens so far."""
        num_choices = len(self._parts) // len(self._prompts)
        firsts = self._parts[::num_choices]
        return Usage(
            num_prompt=self.num_prompt,
            num_output=sum(part.num_output for part in self._parts),
            num_cached=sum(part.num_cached for part in firsts),
            num_thinking=self._num_thinking() if self._splits else None,
        )

    def _num_thinking(self) -> int:
        return sum(p.speech.num_thinking_tokens for p in self._parts if p.speech is not None)

    def _spoken(self, choice: Choice, *, num_new: int) -> list[Choice]:
        """The choice as it is told: one part, or one for each thing that it says."""
        part = self._parts[choice.index]
        speech = part.speech
        if speech is None:
            return [choice]
        if speech.settled:
            speech.keep(choice.text)
            return [choice]
        deltas = speech.push(choice.text, num_new=num_new)
        if choice.finish_reason is not None:
            deltas += speech.finish()
            if choice.finish_reason == "stop" and speech.called:
                part.finish_reason = "tool_calls"
        told = [replace(choice, said=said, finish_reason=None) for said in deltas or [{}]]
        told[1:] = [replace(one, logprobs=None) for one in told[1:]]
        told[-1] = replace(told[-1], finish_reason=part.finish_reason)
        return told

    def _take(self, job: Job, chunk: Chunk) -> Choice:
        """The new part that a chunk brings to its choice."""
        part = self._parts[job.index]
        text = "" if self._only_echo else chunk.text
        logprobs = [] if self._only_echo else [self._logprob(p) for p in chunk.logprobs]
        if self._echo and not part.echoed:
            part.echoed = True
            text = job.prompt.text + text
            if self._logprobs:
                logprobs = self._prompt_logprobs(job, chunk.prompt_logprobs) + logprobs
        start = part.text_length
        part.text_length += len(text)
        part.num_output = 0 if self._only_echo else chunk.num_output
        part.num_cached = chunk.num_cached
        if chunk.finish_reason is not None:
            part.finish_reason, part.stop_reason = chunk.finish_reason, chunk.stop_reason
            part.num_preempted = chunk.num_preempted
            self._num_open -= 1
        return Choice(
            index=job.index,
            text=text,
            finish_reason=chunk.finish_reason,
            stop_reason=chunk.stop_reason,
            logprobs=tuple(logprobs) if self._logprobs else None,
            text_offset=start,
        )

    def _logprob(self, given: Logprobs) -> TokenLogprob:
        name = self._tokenizer.token_text
        return TokenLogprob(
            name(given.token_id), given.logprob, tuple((name(t), p) for t, p in given.top)
        )

    def _prompt_logprobs(self, job: Job, given: tuple[Logprobs, ...]) -> list[TokenLogprob]:
        """One entry per prompt token; the first has no probability, nothing precedes it."""
        given = given[-(len(job.prompt.tokens) - 1) :] if len(job.prompt.tokens) > 1 else ()
        unknown = job.prompt.tokens[: len(job.prompt.tokens) - len(given)]
        names = [TokenLogprob(self._tokenizer.token_text(t), None) for t in unknown]
        return names + [self._logprob(p) for p in given]

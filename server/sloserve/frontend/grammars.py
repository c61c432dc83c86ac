"""Grammars of requests, compiled beside the event loop and the engine's."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from sloserve.engine.runner import ModelFacts
from sloserve.engine.tokenizer import Tokenizer
from sloserve.errors import BadInput, Reason, Unavailable
from sloserve.grammar.constraint import Constraint
from sloserve.grammar.matcher import Grammar

log = logging.getLogger(__name__)

MAX_COMPILE_S = 10.0
MAX_WAIT_S = 10.0
"""For others to be compiled, before it is begun with this one."""
NUM_THREADS = 2
MAX_WAITING = 64
"""Grammars that are compiled or wait for it at once; more are sent away."""
NOT_INSTALLED = (
    "structured output and forced tool calls need the extra sloserve[grammar] on the replica:"
    " pip install 'sloserve[grammar]'"
)


class Compiles(Protocol):
    """What `Grammars` uses of a `Compiler`."""

    def cached(self, constraint: Constraint) -> Grammar | None:
        """The grammar, if it was compiled lately."""
        ...

    def compile(self, constraint: Constraint) -> Grammar:
        """The grammar. Raises BadInput."""
        ...


class Grammars:
    """
    Compiles for one replica: `NUM_THREADS` at a time, each within `max_compile_s` once it is begun.

    `without` says why there is no compiler, when there is none.
    """

    def __init__(
        self,
        compiler: Compiles | None = None,
        *,
        without: str = NOT_INSTALLED,
        max_compile_s: float = MAX_COMPILE_S,
        max_wait_s: float = MAX_WAIT_S,
    ) -> None:
        self._compiler = compiler
        self._without = without
        self._max_compile_s = max_compile_s
        self._max_wait_s = max_wait_s
        self._pool = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="sloserve-grammar")
        self._num_waiting = 0

    def check(self, field: str) -> None:
        """Raise BadInput when grammars can't be had here at all."""
        if self._compiler is None:
            raise BadInput(self._without, field=field)

    async def compile(self, constraint: Constraint) -> Grammar:
        """
        The grammar of a constraint. Raises BadInput for one that is wrong or takes too long, and
        Unavailable when too many wait, or it waited too long for others.
        """
        self.check(constraint.field)
        compiler = self._compiler
        assert compiler is not None
        found = compiler.cached(constraint)
        if found is not None:
            return found
        if self._num_waiting >= MAX_WAITING:
            raise Unavailable(
                Reason.QUEUE_FULL, f"{self._num_waiting} grammars wait to be compiled here"
            )
        loop, begun = asyncio.get_running_loop(), asyncio.Event()

        def work() -> Grammar:
            loop.call_soon_threadsafe(begun.set)
            return compiler.compile(constraint)

        self._num_waiting += 1
        task = self._pool.submit(work)
        compiled = asyncio.wrap_future(task)
        try:
            await self._wait_for_begin(begun)
            return await asyncio.wait_for(compiled, self._max_compile_s)
        except TimeoutError:
            raise BadInput(
                f"this {constraint.kind} takes longer to compile than the"
                f" {self._max_compile_s:g} s that are allowed; make it smaller",
                field=constraint.field,
            ) from None
        finally:
            task.cancel()  # is not begun with any more; what was begun runs to its end
            compiled.cancel()  # and nobody asks what came of it
            self._num_waiting -= 1

    async def _wait_for_begin(self, begun: asyncio.Event) -> None:
        try:
            await asyncio.wait_for(begun.wait(), self._max_wait_s)
        except TimeoutError:
            raise Unavailable(
                Reason.QUEUE_FULL,
                f"this replica compiled other grammars for {self._max_wait_s:g} s, and could not"
                " begin with this one",
            ) from None


def make_grammars(tokenizer: Tokenizer, facts: ModelFacts) -> Grammars:
    """
    For a model's own tokens. Takes up to a second for a large vocabulary. Where the extra is not
    installed, or can't read the tokenizer, every use will say so.
    """
    try:
        from sloserve.grammar.compiler import Compiler, Vocabulary
    except ImportError:
        log.info("structured output is off: the extra sloserve[grammar] is not installed")
        return Grammars()
    vocabulary = Vocabulary(
        tokenizer.definition(), tokenizer.special_ids, facts.eos_ids, facts.vocab_size
    )
    try:
        compiler: Compiler = Compiler(vocabulary)
    except BadInput as error:
        log.warning("structured output is off: %s", error.message)
        return Grammars(None, without=error.message)
    return Grammars(compiler)

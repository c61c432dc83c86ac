"""One replica as its HTTP server knows it: what it serves, and how far it has come."""

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from sloserve.engine.client import EngineClient
from sloserve.engine.runner import ModelFacts
from sloserve.engine.sampling import SamplingParams
from sloserve.engine.tokenizer import Tokenizer
from sloserve.errors import NotFound, Reason, Unavailable
from sloserve.frontend.grammars import Grammars
from sloserve.perf import StepModel
from sloserve.slo.service import ServiceSpec
from sloserve.tools.formats import ToolFormat
from sloserve.wire import Report

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Served:
    """A loaded model: everything a request needs once the replica is up."""

    engine: EngineClient
    tokenizer: Tokenizer
    facts: ModelFacts
    step_model: StepModel  # the stored profile: zero-load times, never corrected online
    defaults: SamplingParams = field(default_factory=SamplingParams)
    grammars: Grammars = field(default_factory=Grammars)
    tool_format: ToolFormat | None = None  # how the model writes calls; None: not known

    @property
    def max_model_len(self) -> int:
        """Prompt + output tokens of one request at most: the model's limit, or the whole cache."""
        return min(self.facts.max_model_len, self.facts.num_blocks * self.facts.block_size)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far loading has come; 0 bytes in total: not known (yet)."""

    phase: str = "starting"
    bytes_done: int = 0
    bytes_total: int = 0


class Replica:
    """
    The state of one replica: loading, then ready, then draining. Owned by the event loop.
    """

    def __init__(
        self, spec: ServiceSpec, *, name: str | None = None, clock: Clock = time.monotonic
    ) -> None:
        self.spec = spec
        self.name = name or f"{socket.gethostname()}-{os.getpid()}"
        self.clock = clock
        self.progress = Progress()
        self.created_s = int(time.time())
        """Unix time of the start, for model cards."""
        self.draining = False
        self.ready = False
        """A first answer has come out of the loaded model."""
        self._served: Served | None = None
        self._applied: list[Callable[[ServiceSpec], None]] = []

    @property
    def state(self) -> str:
        """`loading`, `ready` or `draining`."""
        if self.draining:
            return "draining"
        return "ready" if self.ready else "loading"

    @property
    def loaded(self) -> Served | None:
        """The model, from the moment it is loaded (before the first answer)."""
        return self._served

    @property
    def served(self) -> Served:
        """The model. Raises Unavailable while it loads and while the replica drains."""
        if self.draining:
            raise Unavailable(Reason.DRAINING, f"replica {self.name} is going away")
        if self._served is None or not self.ready:
            raise Unavailable(Reason.LOADING, f"the model is not ready yet: {self.progress.phase}")
        return self._served

    def attach(self, served: Served) -> None:
        """The model is loaded."""
        self._served = served
        served.engine.set_classes(self.spec.classes, generation=self.spec.generation)

    def apply(self, spec: ServiceSpec) -> None:
        """Another generation of the manifest: classes change at once, for new requests."""
        self.spec = spec
        if self._served is not None:
            self._served.engine.set_classes(spec.classes, generation=spec.generation)
        for told in self._applied:
            told(spec)

    def on_apply(self, told: Callable[[ServiceSpec], None]) -> None:
        """Tell `told` of every later generation."""
        self._applied.append(told)

    def adapter_of(self, name: str | None) -> str:
        """
        The adapter that a request for the model `name` wants; empty: the model as it is, which None
        takes, too. Raises NotFound for what is not served here.
        """
        model = self.spec.model
        if name is None or name == model.served_name:
            return ""
        if name in (adapters := [adapter.name for adapter in model.lora]):
            return name
        served = ", ".join((model.served_name, *adapters))
        raise NotFound(f"the model {name[:200]!r} does not exist here, served: {served}")

    def drain(self) -> None:
        """Refuse new requests from now on; what runs goes on."""
        self.draining = True

    def report(self) -> Report:
        """How the replica feels, also while it loads."""
        if self._served is None:
            return Report(
                service=self.spec.name,
                replica=self.name,
                state=self.state,
                config_generation=self.spec.generation,
            )
        told = self._served.engine.report()
        return told if told.state == self.state else replace(told, state=self.state)

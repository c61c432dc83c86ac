"""A whole service as declared by one SLOService manifest: values, with every default filled in."""

from dataclasses import dataclass, field

from sloserve.slo.classes import SloClass
from sloserve.slo.cluster import (
    AutoscalingSpec,
    CacheSpec,
    ObservabilitySpec,
    PodSpec,
    RolloutSpec,
    SecretKey,
)


@dataclass(frozen=True, slots=True)
class LoraSpec:
    """An adapter over the model."""

    name: str
    """The model name by which a request asks for it."""
    source: str


TOOL_PARSERS = ("hermes", "llama3", "mistral", "mistral-args")


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Which model is served."""

    source: str
    """`hf://org/name`, `pvc://claim/path`, `file:///path`, `builtin://tiny`,
    `builtin://sim?profile=h200`."""
    served_name: str
    """The name clients send as `model`; default: the service's name."""
    revision: str = "main"
    """Branch, tag or commit of an `hf://` source."""
    max_model_len: int | None = None
    """Prompt + output tokens of one request at most; None: what the model allows."""
    chat_template: str | None = None
    """A Jinja template; None: the tokenizer's own."""
    tool_parser: str | None = None
    """How the model writes tool calls (`TOOL_PARSERS`); None: what its chat template teaches."""
    lora: tuple[LoraSpec, ...] = ()
    token_secret: SecretKey | None = None
    """The hub token of a gated model (Kubernetes); on one machine: HF_TOKEN."""
    cache: CacheSpec = field(default_factory=CacheSpec)
    """Where Kubernetes keeps downloads; on one machine: HF_HOME."""
    load_timeout_s: float = 1800.0
    """Seconds that downloading and loading may take; large models over slow links need them."""

    @property
    def names(self) -> tuple[str, ...]:
        """By which requests ask for it: its own, then those of its adapters."""
        return (self.served_name, *(adapter.name for adapter in self.lora))


@dataclass(frozen=True, slots=True)
class SpeculationSpec:
    """Speculative decoding; `Auto` lets the planner decide at every step."""

    mode: str = "Auto"
    """`Auto` or `Never`."""
    drafter: str = "ngram"
    """`ngram`, or the source of a draft model that shares the tokenizer."""
    max_draft_tokens: int = 8


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """How one replica runs."""

    device: str = "cpu"
    """`cpu` or `cuda`."""
    dtype: str = "auto"
    """`auto`, `float32`, `bfloat16` or `float16`; auto: what the device runs well."""
    tensor_parallel_size: int = 1
    """Processes of a replica that compute its model together: one GPU each, or part of the CPU."""
    kv_memory_fraction: float = 0.9
    """Share (0..1) of the device's memory that weights and KV cache may fill together."""
    kv_bytes: int | None = None
    """Size of the KV cache in bytes; when set, `kv_memory_fraction` is not used."""
    prefix_caching: bool = True
    """Whether prompts that start alike share KV blocks."""
    max_running: int = 256
    """Requests in one step at most."""
    max_batch_tokens: int = 8192
    """Tokens in one step at most."""
    threads: int | None = None
    """CPU threads of the forward pass; None: the cores of this machine."""
    attention: str = "auto"
    """`auto`, `torch`, `compiled` (cpu), `triton` or `flash-attn` (cuda); auto: the fastest kernel
    that can be had and holds."""
    speculation: SpeculationSpec = field(default_factory=SpeculationSpec)
    rollout: RolloutSpec = field(default_factory=RolloutSpec)
    pod: PodSpec = field(default_factory=PodSpec)


@dataclass(frozen=True, slots=True)
class GatewaySpec:
    """The gateways in front of the replicas."""

    max_hops: int | None = None
    """Replicas asked for one request at most; None: all, at most 4."""
    hold_timeout_s: float = 300.0
    """Seconds that a request is held while no replica exists but one is coming."""
    replicas: int = 2
    """Gateways in Kubernetes; on one machine there is one."""
    auth_secret: str | None = None
    """Secret with the key file `keys.yaml`; None: no keys asked for."""
    tls_secret: str | None = None
    """Secret with `tls.crt` and `tls.key`; None: plain HTTP."""
    service_type: str = "ClusterIP"
    """`ClusterIP`, `NodePort` or `LoadBalancer`."""
    pod: PodSpec = field(default_factory=PodSpec)


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """One service: a model, its promises, and how it runs."""

    name: str
    model: ModelSpec
    classes: tuple[SloClass, ...]
    """1 to 16, names unique."""
    default_class: str
    """Class of a request that names none; default: the first."""
    engine: EngineSpec = field(default_factory=EngineSpec)
    replicas: int = 1
    gateway: GatewaySpec = field(default_factory=GatewaySpec)
    drain_timeout_s: float = 600.0
    """Seconds that running answers get to finish when a process is told to stop."""
    autoscaling: AutoscalingSpec | None = None
    observability: ObservabilitySpec = field(default_factory=ObservabilitySpec)
    namespace: str = ""
    """Kubernetes only."""
    generation: int = 1
    """Counts the changes of the manifest; processes report which one they apply."""

    def slo_class(self, name: str) -> SloClass | None:
        """The class of that name, if there is one."""
        return next((c for c in self.classes if c.name == name), None)

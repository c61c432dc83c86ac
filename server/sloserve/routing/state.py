"""What a router remembers between requests."""

from sloserve.routing.affinity import Affinity
from sloserve.routing.estimate import TokensPerCharacter


class RoutingState:
    """
    Running means and memories; one per gateway, one per simulated gateway.

    `OVERLOAD` is the share of asked replicas that declined above which requests are spread
    instead of packed: reports are then wrong too often to bet on.
    """

    OVERLOAD = 0.02
    _DECAY = 1 / 200  # of the declined share, per asked replica
    _INITIAL_OUTPUT_TOKENS = 128.0

    def __init__(self) -> None:
        self.tokens_per_char = TokensPerCharacter()
        self.affinity = Affinity()
        self._declined_share = 0.0
        self._outputs: dict[str, float] = {}

    def asked(self, *, declined: bool) -> None:
        """A replica answered an ask; `declined`: not with its promise (degraded as well)."""
        self._declined_share += (float(declined) - self._declined_share) * self._DECAY

    @property
    def overloaded(self) -> bool:
        """Whether so many asks are declined that packing no longer pays."""
        return self._declined_share > self.OVERLOAD

    def finished(self, slo_class: str, num_output: int) -> None:
        """A request of this class ended with so many output tokens."""
        mean = self._outputs.get(slo_class, self._INITIAL_OUTPUT_TOKENS)
        self._outputs[slo_class] = mean + (num_output - mean) / 50

    def expected_output(self, slo_class: str) -> float:
        """The running mean of output tokens of this class."""
        return self._outputs.get(slo_class, self._INITIAL_OUTPUT_TOKENS)

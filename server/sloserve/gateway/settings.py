"""How a gateway behaves; the defaults are good for everybody but tests."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settings:
    """Bounds of one gateway. Seconds and bytes."""

    max_body_bytes: int = 8 * 1024 * 1024
    """Longer request bodies are refused (413)."""
    connect_timeout_s: float = 2.0
    """A replica that does not take a connection in this time is asked no further."""
    slow_reader_s: float = 60.0
    """A client that reads nothing for so long is cut off."""
    poll_s: float = 0.15
    """Between two looks at a replica."""

"""LLM serving that keeps its latency promises."""

__version__ = "0.1.0"

"""The loop around a runner; knows no torch."""

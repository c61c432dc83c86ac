"""From a parsed service to the objects it is made of: pure rendering."""

from sloserve_operator.children.family import render

__all__ = ["render"]

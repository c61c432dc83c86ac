"""Which tokens run next: pure functions, no clock, no I/O."""

from sloserve.planner.types import Limits, Plan, Policy, Probe, Row, Snapshot, Tier, Verdict

__all__ = ["Limits", "Plan", "Policy", "Probe", "Row", "Snapshot", "Tier", "Verdict"]

"""
Load: traces, synthetic mixes, the load client behind `sloserve bench`, scoring and reports.

Shared with `sloserve.simulate`, so that both judge and report alike.
"""

from sloserve.load.builtin import load_trace
from sloserve.load.records import Ending, Judged, Record, judge
from sloserve.load.report import Capacity, Report, Window
from sloserve.load.summary import ClassSummary, summarise
from sloserve.load.trace import Arrival, Trace

__all__ = [
    "Arrival",
    "Capacity",
    "ClassSummary",
    "Ending",
    "Judged",
    "Record",
    "Report",
    "Trace",
    "Window",
    "judge",
    "load_trace",
    "summarise",
]

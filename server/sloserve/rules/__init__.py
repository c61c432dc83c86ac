"""Recording and alert rules of a service, and the boards, as data. Pure: nothing is written."""

from sloserve.rules.rule import Alert, Group, Recording
from sloserve.rules.service import operator_groups, rules_file, service_groups
from sloserve.rules.settings import RuleSettings

__all__ = [
    "Alert",
    "Group",
    "Recording",
    "RuleSettings",
    "operator_groups",
    "rules_file",
    "service_groups",
]

"""Every alert has its entry, every entry its alert, and links lead there."""

import re
from pathlib import Path
from typing import Any

import pytest

from sloserve.errors import Reason
from sloserve.rules import Alert

PARTS = ("Meaning.", "First look.", "Likely causes.", "Remedies.", "Silence.")


@pytest.fixture
def entries(root: Path) -> dict[str, str]:
    """The runbook's entries by heading."""
    pieces = re.split(r"^## (.+)$", (root / "docs" / "runbook.md").read_text(), flags=re.M)
    return dict(zip(pieces[1::2], pieces[2::2], strict=True))


@pytest.fixture
def alerts(groups: Any) -> list[Alert]:
    """Every alert of the example and of the operator."""
    return [rule for group in groups for rule in group.rules if isinstance(rule, Alert)]


def test_every_alert_has_an_entry_and_every_entry_an_alert(
    entries: dict[str, str], alerts: list[Alert]
) -> None:
    assert set(entries) == {alert.alert for alert in alerts}


def test_every_entry_has_its_parts(entries: dict[str, str]) -> None:
    for name, text in entries.items():
        assert [part for part in PARTS if f"**{part}**" not in text] == [], name


def test_the_link_of_an_alert_is_the_anchor_of_its_entry(
    entries: dict[str, str], alerts: list[Alert]
) -> None:
    anchors = {re.sub(r"[^a-z0-9 -]", "", name.lower()).replace(" ", "-") for name in entries}
    for alert in alerts:
        page, _, anchor = alert.annotations["runbook_url"].partition("#")
        assert page.endswith("docs/runbook.md")
        assert anchor in anchors


def test_links_inside_the_runbook_lead_somewhere(root: Path, entries: dict[str, str]) -> None:
    text = (root / "docs" / "runbook.md").read_text()
    anchors = {name.lower() for name in entries}
    assert set(re.findall(r"\]\(#([a-z-]+)\)", text)) <= anchors


def test_every_reason_has_a_remedy(root: Path) -> None:
    text = (root / "docs" / "runbook.md").read_text().partition("## ")[0]
    told = set(re.findall(r"`(\w+)`", text))
    quiet = {Reason.NONE, Reason.CLIENT_GONE}  # the client's own choice
    assert {reason.value for reason in Reason if reason not in quiet} <= told
    assert {"LateFirstToken", "LateToken", "None"} <= told


def test_boards_and_panels_that_the_runbook_names_exist(root: Path) -> None:
    text = (root / "docs" / "runbook.md").read_text()
    boards = (root / "dashboards" / "README.md").read_text()
    for name in set(re.findall(r"[Bb]oard \*(.+?)\*", text)):
        assert f"### sloserve / {name} " in boards, name
    for panel in set(re.findall(r'"([A-Z][^"\n]+)"', text)):
        assert f"| {panel} |" in boards, panel

"""Prints, after the run, the results of the vectors by file: where they differ, and why they may."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest

Judged = tuple[str, str, str]
"""File, record, and why it differs from the reference and may; blank where it does not differ."""

_PROPERTY = "conformance"


@pytest.fixture
def differences(record_property):
    """Collects what was judged; it travels with the test's report, whichever process ran the test."""
    judged: list[Judged] = []
    yield judged
    for each in judged:
        record_property(_PROPERTY, each)


def pytest_terminal_summary(terminalreporter):
    judged = {
        tuple(value)
        for reports in terminalreporter.stats.values()
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == _PROPERTY
    }
    if not judged:
        return
    terminalreporter.section("conformance: records as the reference, and where the vectors leave it open")
    by_file = defaultdict(list)
    for file, record, why in sorted(judged):
        by_file[file].append((record, why))
    for file, found in by_file.items():
        equal = sum(1 for _, why in found if not why)
        terminalreporter.write_line(f"{file:20} {equal:4} of {len(found)} records as the reference")
        for why, count in sorted(Counter(why for _, why in found if why).items()):
            ids = [record for record, reason in found if reason == why]
            shown = " ".join(ids[:4]) + (" ..." if count > 4 else "")
            terminalreporter.write_line(f"{'':20} {count:4}  {why}  [{shown}]")

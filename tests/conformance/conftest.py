"""Prints, after the run, where the library answers otherwise than the reference, and why it may."""

from __future__ import annotations

from collections import Counter

import pytest

Difference = tuple[str, str, str]
_DIFFERENCES: pytest.StashKey[list[Difference]] = pytest.StashKey()


def pytest_configure(config):
    config.stash[_DIFFERENCES] = []


@pytest.fixture
def differences(request) -> list[Difference]:
    """Collects (file, record id, why) of records that differ from the reference and may."""
    return request.config.stash[_DIFFERENCES]


def pytest_terminal_summary(terminalreporter, config):
    found = sorted(set(config.stash[_DIFFERENCES]))
    if not found:
        return
    terminalreporter.section("conformance: differs from the reference where the vectors leave it open")
    for (file, why), count in sorted(Counter((file, why) for file, _, why in found).items()):
        ids = [record for name, record, reason in found if (name, reason) == (file, why)]
        shown = " ".join(ids[:4]) + (" ..." if count > 4 else "")
        terminalreporter.write_line(f"{file:20} {count:4}  {why}  [{shown}]")

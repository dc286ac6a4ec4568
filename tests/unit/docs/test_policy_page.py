"""What the page on policies shows works as it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from runtime.edges.cli.policy_cases import read_cases
from runtime.kernel.policy_hooks import PolicyHooks
from runtime.workspace import load_workspace

PAGE = (Path(__file__).parents[3] / "docs/how-to/write-a-policy.md").read_text(encoding="utf-8")


def blocks(kind):
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("block", [each for each in blocks("yaml") if each.startswith("policies:")])
def test_a_policy_on_the_page_loads(tmp_path, block):
    (tmp_path / "workspace.yaml").write_text(block)
    policies = load_workspace(tmp_path / "workspace.yaml").file.policies
    assert policies.rules or policies.entry_points


def test_the_cases_and_the_entry_point_on_the_page_are_read(tmp_path):
    (block,) = [each for each in blocks("yaml") if each.startswith("cases:")]
    (tmp_path / "cases.yaml").write_text(block)
    assert [case.expect for case in read_cases(tmp_path / "cases.yaml")] == ["allow", "approval_required"]
    (tmp_path / "house_rules.py").write_text(blocks("python")[0])
    assert PolicyHooks.load(["house_rules:office_hours"], tmp_path).functions

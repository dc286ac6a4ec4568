"""Every commit of the runtime has a name of its own, at which a test can kill the process."""

import ast
from pathlib import Path

import pytest

from runtime.store.crashpoints import POINTS, CrashPoints, Transition

RUNTIME = Path(__file__).parents[2] / "runtime"


def commits():
    """Calls that commit: ``database.writing(...)`` and ``journal.apply(...)``, with what they name."""
    for path in sorted(RUNTIME.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            journal = isinstance(node.func.value, ast.Name) and node.func.value.id == "journal"
            if node.func.attr == "writing" or (node.func.attr == "apply" and journal):
                yield f"{path.relative_to(RUNTIME)}:{node.lineno}", ast.unparse(node)


def test_no_commit_is_without_a_name():
    found = dict(commits())
    assert len(found) > 20
    assert [place for place, call in found.items() if "ransition" not in call] == []


def test_every_name_is_used():
    said = "\n".join(path.read_text(encoding="utf-8") for path in RUNTIME.rglob("*.py"))
    unused = [each.name for each in Transition if f"Transition.{each.name}" not in said]
    assert unused == []


def test_a_point_that_does_not_exist_is_refused():
    assert "record.after_commit" in POINTS
    with pytest.raises(ValueError, match=r"recrod\.after_commit"):
        CrashPoints("recrod.after_commit:1")

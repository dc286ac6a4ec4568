"""What a test asks after the work: the ledger, the receipts, and a second process's word on the evidence."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

from runtime.agent_runtime import AgentRuntime
from runtime.engine.handle import SessionHandle


def ledger() -> Counter[str]:
    """How often each effect happened: ``verb name`` to its number."""
    return Counter(" ".join(words[:2]) for words in _entries())


def idempotency_keys(effect: str) -> set[str]:
    """The keys under which an effect happened."""
    return {words[2] for words in _entries() if " ".join(words[:2]) == effect}


def effects() -> Counter[str]:
    """How often the effect of each idempotency key, hence of each step, took place."""
    return Counter(words[2] for words in _entries())


def _entries() -> list[list[str]]:
    path = Path(os.environ["LEDGER"])
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.split() for line in lines]


def let_go() -> None:
    """End the calls that wait because they were told to ``hold``."""
    Path(os.environ["LEDGER"]).with_suffix(".go").touch()


def receipts(flow: SessionHandle, kind: str, tool: str | None = None) -> list[dict]:
    """Bodies of a session's committed receipts of one kind so far, of one tool if it is named."""
    events = [event for event in flow.events(timeout=0) if event.kind == kind and not event.live]
    return [event.body for event in events if tool in (None, event.tool_name)]


def results(flow: SessionHandle, tool: str | None = None) -> list[str]:
    """How the receipts name the ends of a session's calls."""
    return [body["result"] for body in receipts(flow, "tool_call_finished", tool)]


def verified_by_another_process(runtime: AgentRuntime, session_id: str = "s-1") -> bool:
    """Whether a second process finds the session's evidence whole."""
    done = subprocess.run(
        [sys.executable, "-m", "runtime.edges.cli", "evidence", "verify", session_id, "--json"],
        env={
            **os.environ,
            "AGENT_RUNTIME_DATABASE_URL": runtime.settings.database_url,
            "PYTHONPATH": str(Path(__file__).parents[2]),
        },
        cwd=runtime.settings.state_dir,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode in (0, 1), done.stderr
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert found["verified"] is (done.returncode == 0), found
    return found["verified"]

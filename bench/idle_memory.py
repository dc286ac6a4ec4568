"""What the dev stack holds in memory when there is nothing to do."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

import psutil  # type: ignore[import-untyped]

from bench.figure import BenchFailed, Figure, Line, Spread
from bench.lab import KEY, ROOT, WORKSPACE, Lab

MIB = 1024 * 1024


def measure(lab: Lab, quick: bool) -> list[Line]:
    """Start ``agent-runtime dev`` (SQLite, embedded Valkey) and add up its processes' proportional sets."""
    samples, pause = (2, 1.0) if quick else (5, 2.0)
    state = lab.folder / "dev"
    log = lab.folder / "dev.log"
    with log.open("wb") as output:
        dev = _start(state, output)
    try:
        lab.wait_until(
            "the start of agent-runtime dev",
            lambda: b"ready: " in log.read_bytes() or dev.poll() is not None,
            90,
        )
        if dev.poll() is not None:
            raise BenchFailed(f"agent-runtime dev ended:\n{log.read_text()}")
        taken = []
        for _ in range(samples):
            threading.Event().wait(pause)
            taken.append(_proportional_mib(dev.pid))
    finally:
        dev.terminate()
        dev.wait(30)
    names = sorted(set().union(*taken))
    lines = [Line(name, "MiB PSS", Spread.of(each.get(name, 0.0) for each in taken)) for name in names]
    return [Line("dev stack, idle", "MiB PSS", Spread.of(sum(each.values()) for each in taken)), *lines]


def _start(state: Path, output: IO[bytes]) -> subprocess.Popen[bytes]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AGENT_RUNTIME_")}
    command = [sys.executable, "-m", "runtime.edges.cli", "dev"]
    return subprocess.Popen(
        [*command, "--workspace", str(WORKSPACE), "--state-dir", str(state)],
        env={**inherited, **KEY, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
    )


def _proportional_mib(pid: int) -> dict[str, float]:
    """Proportional set sizes of a process and all that it started, by part of the stack."""
    root = psutil.Process(pid)
    held: dict[str, float] = {}
    for process in [root, *root.children(recursive=True)]:
        try:
            part, size = _part(process, root), process.memory_full_info().pss / MIB
        except psutil.NoSuchProcess:
            continue
        held[part] = held.get(part, 0.0) + size
    return held


def _part(process: psutil.Process, root: psutil.Process) -> str:
    if process.pid == root.pid:
        return "  agent-runtime dev"
    words = " ".join([process.name(), *process.cmdline()])
    for mark, part in (("turns@", "turns worker"), ("tools@", "tools worker"), (" beat", "beat")):
        if mark in words:
            return f"  {part}"
    return "  Valkey" if "valkey" in words else "  guardian shells and tool processes"


FIGURE = Figure("memory", "the dev stack at rest (SQLite, embedded Valkey)", measure)

"""Receipts verified per second: the chain by itself, and a session in a database with its rows and seals."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import text

from bench.figure import BenchFailed, Figure, Line, Spread
from bench.lab import Lab
from runtime.core.chain import Chain, Content, Problem, Receipt, verify
from runtime.core.export_format import read_seals
from runtime.core.model import Driver, NodeStatus, StepKind, StepStatus
from runtime.engine.sealing import seal_evidence
from runtime.store.engine import Database
from runtime.store.evidence import Place, read_page, snapshot, verify_session
from runtime.store.journal import add_evidence
from runtime.store.migrate import upgrade
from runtime.store.rows import node_row, step_row
from runtime.store.seals import copy_seals, verify_sealed
from runtime.store.tables import NodeRow, SessionRow, StepRow
from runtime.store.write import Change

SESSION, NODE = "long", "node"
GOAL = 20_000
BATCH = 500

_STARTED = {
    "node_id": NODE,
    "tool_name": "bench:noop",
    "tool_digest": "d" * 64,
    "workspace_hash": "w" * 64,
    "worker": "bench@host",
    "granted_scopes": [{"type": "path", "pattern": "calendar/**", "access": "write"}],
    "policy": {"decision": "allow", "rules": [{"layer": "pack", "id": "measuring", "decision": "allow"}]},
}


def measure(lab: Lab, quick: bool) -> list[Line]:
    """Verify one long session in memory and on both databases; each round goes through all of it."""
    calls, rounds = (1_000, 2) if quick else (GOAL // 2, 5)
    receipts = [receipt for _, chain, _ in _calls(calls) for receipt in chain]
    heads = {receipt.step_id: receipt.hash for receipt in receipts}
    lines = [_line("chain in memory", calls, rounds, lambda: verify(receipts, (), heads).problem, GOAL)]
    for name, url in (("SQLite", f"sqlite:///{lab.folder / 'verify.db'}"), ("PostgreSQL", lab.postgres_url)):
        database = Database(url)
        try:
            upgrade(database)
            lines += _on(database, name, calls, rounds)
        finally:
            database.close()
    return lines


def _on(database: Database, name: str, calls: int, rounds: int) -> list[Line]:
    _fill(database, calls)
    begun = time.perf_counter()
    seal_evidence(database, Ed25519PrivateKey.generate())
    sealing = 2 * calls / (time.perf_counter() - begun)
    with snapshot(database) as connection:
        copy = read_seals([line.encode() for line in copy_seals(connection)])
    return [
        _line(
            f"{name}: chain and rows", calls, rounds, lambda: verify_session(database, SESSION).problem, GOAL
        ),
        _line(f"{name}: beside seals", calls, rounds, lambda: verify_sealed(database, copy, SESSION).problem),
        Line(f"{name}: sealed", "receipts/s", Spread(sealing, sealing, sealing)),
        Line(f"{name}: last page / first", "×", _pages(database), at_most=1.5),
    ]


def _line(
    name: str, calls: int, rounds: int, work: Callable[[], Problem | None], goal: float | None = None
) -> Line:
    rates = []
    for _ in range(rounds):
        begun = time.perf_counter()
        if problem := work():
            raise BenchFailed(f"{name}: {problem.entry}: {problem.reason}")
        rates.append(2 * calls / (time.perf_counter() - begun))
    return Line(name, "receipts/s", Spread.of(rates), at_least=goal)


def _pages(database: Database) -> Spread:
    """What reading the last page of a session costs beside the first one."""
    with database.reading() as connection:
        row = connection.execute(
            text(
                "SELECT transaction_id, position FROM evidence WHERE session_id = :id "
                "ORDER BY transaction_id DESC, position DESC LIMIT 1 OFFSET 100"
            ),
            {"id": SESSION},
        ).one()
    late = Place(row.transaction_id, row.position)
    return Spread.of(_seconds(database, late) / _seconds(database, Place()) for _ in range(5))


def _seconds(database: Database, after: Place) -> float:
    begun = time.perf_counter()
    for _ in range(50):
        page = read_page(database, SESSION, after, 100)
        if len(page.receipts) != 100:
            raise BenchFailed(f"a page behind {after} has {len(page.receipts)} receipts, not 100")
    return time.perf_counter() - begun


# --- a long session -------------------------------------------------------------------------------


def _calls(count: int) -> Iterator[tuple[str, list[Receipt], dict[str, str | None]]]:
    """Calls one after the other, as a worker records them: step, receipts, and what the step's row holds."""
    cites: list[str] = []
    for number in range(count):
        step_id = f"{NODE}.{number}.0"
        chain = Chain(step_id, 1, cites, common={"session_id": SESSION})
        given = Content.of({"n": number, "text": "what a tool is told, which takes a line or two " * 3})
        output = Content.of({"n": number, "text": "what came out of it"})
        receipts = [
            chain.add("tool_call_started", {**_STARTED, **given.cited_as("input"), "at": number}),
            chain.add(
                "tool_call_finished",
                {**output.cited_as("output"), "result": "success", "at": number, "duration_ms": 3},
            ),
        ]
        row = {
            "input_hash": given.hash,
            "output": output.text,
            "head": chain.head,
            "status": StepStatus.SUCCEEDED,
        }
        yield step_id, receipts, row
        cites = [receipts[-1].hash]


def _fill(database: Database, count: int) -> None:
    """Put the session into a database."""
    change = Change()
    texts = {"kind": "session", "run_id": "r", "task_id": "t", "context": "{}", "definition_digest": ""}
    change.insert(SessionRow, [{"id": SESSION, "created_at": 0, **texts}])
    node = node_row(uid=NODE, session_id=SESSION, node_id=NODE, status=NodeStatus.RUNNING, mode="host")
    change.insert(NodeRow, [node])
    _apply(database, change)
    change = Change()
    steps, receipts = [], []
    for number, (step_id, chain, row) in enumerate(_calls(count)):
        receipts += chain
        steps.append(
            step_row(
                id=step_id,
                session_id=SESSION,
                node_uid=NODE,
                node_id=NODE,
                kind=StepKind.TOOL_CALL,
                driver=Driver.HOST,
                turn_index=number,
                call_index=0,
                tool_name="bench:noop",
                queue="tools",
                due_at=0,
                fence=1,
                **row,
            )
        )
        if len(steps) == BATCH or number == count - 1:
            change.insert(StepRow, steps)
            add_evidence(change, SESSION, receipts)
            _apply(database, change)
            change, steps, receipts = Change(), [], []
    if database.dialect == "postgresql":
        with database.reading() as connection:
            connection.execute(text("ANALYZE"))


def _apply(database: Database, change: Change) -> None:
    with database.writing() as connection:
        if not change.apply(connection):
            raise BenchFailed("the long session could not be written")


FIGURE = Figure("verify", "receipts verified per second, and what a late page costs", measure)

"""The command line's frame: the commands, and how they report errors.

Exit codes: 0 done, 1 refused or failed, 2 wrong use, 130 interrupted. Commands import what they need when
they run, so that ``--help`` answers at once.
"""

from __future__ import annotations

import io
import os
import sys

import typer

from runtime.edges.cli import (
    approvals,
    config,
    db,
    demo,
    dev,
    doctor,
    evidence,
    grants,
    policy,
    run,
    schedules,
    sessions,
    tools,
    worker,
)
from runtime.edges.cli.console import note, write_json
from runtime.errors import AgentRuntimeError

app = typer.Typer(
    name="agent-runtime",
    help="Run governed LLM agents on Celery, Redis and SQL.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.command("dev")(dev.dev)
app.command("worker")(worker.worker)
app.command("beat")(worker.beat)
app.command("doctor")(doctor.doctor)
app.command("run")(run.run)
app.add_typer(config.group, name="config")
app.add_typer(db.group, name="db")
app.add_typer(sessions.group, name="sessions")
app.add_typer(schedules.group, name="schedules")
app.add_typer(approvals.group, name="approvals")
app.add_typer(grants.group, name="grants")
app.add_typer(evidence.group, name="evidence")
app.add_typer(tools.group, name="tools")
app.add_typer(policy.group, name="policy")


def main() -> None:
    """Run the command line; errors are told in a line or as JSON, never as a traceback."""
    _write_any_text()
    try:
        app()
    except AgentRuntimeError as error:
        _report(str(error.code), str(error), error.details)
        sys.exit(1)
    except Exception as error:
        # The last place that can keep a traceback from a user.
        if os.environ.get("AGENT_RUNTIME_DEBUG"):
            raise
        hint = "this is a defect; AGENT_RUNTIME_DEBUG=1 shows where"
        _report("INTERNAL_ERROR", f"{type(error).__name__}: {error} — {hint}", {})
        sys.exit(1)


def _write_any_text() -> None:
    """Models write lone surrogates as well; escaped they can be printed, and JSON reads them back."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def _report(code: str, message: str, details: dict[str, object]) -> None:
    if "--json" in sys.argv:
        write_json({"error": {"code": code, "message": message, "details": details}})
    else:
        note(f"error: {code}: {message}")

"""``agent-runtime demo``: the documents' story on real workers, from start to stop."""

from __future__ import annotations

import secrets
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from runtime.edges.demo.play import Decide, Report

GOOD_RESULTS = {"success"}


def demo(
    approve: Annotated[
        bool | None, typer.Option("--approve/--deny", help="Answer the approval; default: ask, or deny.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    state_dir: Annotated[
        Path | None, typer.Option(help="Where state is kept; default: .agent-runtime.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds the session may take.")] = 300.0,
    beat: Annotated[bool, typer.Option("--beat/--no-beat", hidden=True)] = True,
) -> None:
    """Reschedule the weekly review: two branches, their join, and a deletion that a person must approve."""
    from rich.console import Console

    from runtime.edges.cli.console import LogFiles, note, stoppable, write_json
    from runtime.edges.demo.play import play, report
    from runtime.edges.demo.stage import stage
    from runtime.edges.shadowing import refuse_shadowed_modules
    from runtime.settings import Settings

    refuse_shadowed_modules()
    console = Console(stderr=as_json, highlight=False)
    name = f"demo-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    run_dir = Settings.load(state_dir=state_dir).state_dir / name
    try:
        with stoppable(), LogFiles(run_dir / "logs") as logs:
            with stage(
                run_dir, sink=logs, tell=lambda text: console.print(f"[dim]▪ {text}"), beat=beat
            ) as scene:
                decide, show = _decider(console, approve), _shower(console)
                outcome = play(scene, name, decide=decide, show=show, timeout=timeout)
            console.print("[dim]▪ all processes are stopped; a second process verifies the evidence")
            result = report(scene.settings, scene, name, outcome)
    except KeyboardInterrupt:
        note(f"interrupted; everything is stopped, state is kept in {run_dir}")
        raise typer.Exit(130) from None
    if as_json:
        write_json(result.to_json())
    else:
        _print_report(console, result)
    raise typer.Exit(0 if result.good else 1)


def _decider(console: Console, approve: bool | None) -> Decide:
    """Who answers approvals: the flag, a person on a terminal, or nobody, which means no."""

    def decide(request: Any) -> bool:
        console.print(f"[bold yellow]? approval wanted:[/] {request.tool_name} with {request.input}")
        if approve is not None:
            answer = approve
        elif sys.stdin.isatty():
            from rich.prompt import Confirm

            answer = Confirm.ask("  Approve this exact call?", console=console, default=False)
        else:
            sys.stderr.write(
                "no terminal to ask on, so the answer is no; pass --approve or --deny to choose\n"
            )
            answer = False
        console.print("  [green]approved" if answer else "  [red]denied")
        return answer

    return decide


def _shower(console: Console) -> Callable[[Any], None]:
    """Print each receipt as a line: when, where, which tool, what of it."""
    from rich.markup import escape

    began = time.monotonic()

    def show(event: Any) -> None:
        sign, what = _told(event)
        where, tool = event.node_id or "session", event.tool_name or ""
        clock = f"[dim]{time.monotonic() - began:6.2f} s[/]"
        console.print(f"{clock} {sign} {escape(where):<18} {escape(tool):<26} [dim]{escape(what)}[/]")

    return show


def _told(event: Any) -> tuple[str, str]:
    """The sign of a receipt, and its gist in words."""
    if event.kind == "tool_call_started":
        return "[cyan]▸[/]", "started"
    if event.kind == "tool_call_progress":
        return "[blue]·[/]", "progress"
    if event.kind != "tool_call_finished":
        return "[yellow]○[/]", str(event.kind).replace("_", " ")
    result = str(event.body.get("result", ""))
    duration = event.body.get("duration_ms")
    took = f" in {duration} ms" if duration is not None else ""
    return ("[green]✓[/]" if result in GOOD_RESULTS else "[yellow]✗[/]"), f"{result}{took}"


def _print_report(console: Console, result: Report) -> None:
    from rich.table import Table

    nodes = Table(
        "node", "status", "turns", "calls", "result", title="What the agents did", title_justify="left"
    )
    for node in result.nodes:
        nodes.add_row(node.id, node.status, str(node.turns), str(node.tool_calls), node.result)
    calendar = Table("start", "minutes", "title", title="What the calendar holds now", title_justify="left")
    for event in result.calendar:
        calendar.add_row(f"{event.start:%Y-%m-%d %H:%M}", str(event.minutes), event.title)
    console.print(nodes, calendar)
    chain = "[green]verified by a second process[/]" if result.verified else "[red]NOT verified[/]"
    console.print(f"{result.receipts} receipts, {chain}; model: {result.model}")
    console.print(
        f"session {result.session_id}: {result.status} in {result.seconds:g} s; kept in {result.state_dir}"
    )

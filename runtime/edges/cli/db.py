"""``agent-runtime db``: the schema of the SQL database."""

from __future__ import annotations

from typing import Annotated

import typer

from runtime.edges.cli import options

group = typer.Typer(help="The schema of the SQL database.", no_args_is_help=True)


@group.command()
def upgrade(as_json: options.Json = False) -> None:
    """Bring the database to this release's schema; harmless to repeat."""
    from runtime.edges.cli.console import write_json
    from runtime.edges.cli.show import print_lines
    from runtime.errors import StoreUnavailable
    from runtime.settings import Settings, redact_url
    from runtime.store.engine import Database
    from runtime.store.migrate import HEAD, current_version
    from runtime.store.migrate import upgrade as bring_up

    settings = Settings.load()
    shown = redact_url(settings.database_url)
    database = Database(settings.database_url)
    try:
        before = current_version(database)
        if before is not None and before > HEAD:
            raise StoreUnavailable(
                f"the database {shown} is at schema {before}, newer than this release's {HEAD}; install the "
                "release that made it"
            )
        after = bring_up(database)
    finally:
        database.close()
    if as_json:
        write_json({"database": shown, "before": before, "version": after})
    else:
        done = "is already" if before == after else f"was brought from {before or 'nothing'} and is now"
        print_lines(f"{shown} {done} at schema {after}")


@group.command()
def version(as_json: options.Json = False) -> None:
    """Print the database's schema version; exit 1 unless it is the one that this release needs."""
    from runtime.edges.cli.console import note, write_json
    from runtime.edges.cli.opening import refuse_missing_file
    from runtime.edges.cli.show import print_lines
    from runtime.settings import Settings, redact_url
    from runtime.store.engine import Database
    from runtime.store.migrate import HEAD, current_version

    settings = Settings.load()
    refuse_missing_file(settings)
    database = Database(settings.database_url)
    try:
        found = current_version(database)
    finally:
        database.close()
    if as_json:
        shown = redact_url(settings.database_url)
        write_json({"database": shown, "version": found, "needed": HEAD, "current": found == HEAD})
    else:
        print_lines(found or "none")
    if found != HEAD:
        note(f"this release needs schema {HEAD}; run 'agent-runtime db upgrade'")
        raise typer.Exit(1)


@group.command()
def roles(
    tool_worker: Annotated[
        str, typer.Option("--tool-worker", metavar="NAME", help="An existing role for tool workers.")
    ],
    apply: Annotated[bool, typer.Option("--apply", help="Execute them, as the owner of the tables.")] = False,
    as_json: options.Json = False,
) -> None:
    """Print the PostgreSQL statements by which tool workers can ask for approval, but never answer."""
    from runtime.edges.cli.console import note, write_json
    from runtime.edges.cli.opening import open_database
    from runtime.edges.cli.show import print_lines
    from runtime.store.roles import apply_tool_worker, tool_worker_statements

    if apply:
        with open_database() as database:
            statements = apply_tool_worker(database, tool_worker)
    else:
        statements = tool_worker_statements(tool_worker)
    if as_json:
        write_json({"role": tool_worker, "statements": list(statements), "applied": apply})
        return
    print_lines(*(f"{statement};" for statement in statements))
    note("they are in force" if apply else "nothing was changed; --apply executes them")

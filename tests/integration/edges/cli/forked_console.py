"""Runs the console in forks of one process that has imported it, so that tests need not wait for imports.

Takes one JSON job per line (arguments, cwd, env, stdout, stderr) and answers with the exit code.
"""

import gc
import json
import os
import runpy
import sys

import alembic.command  # noqa: F401
import rich.console
import rich.live
import rich.table
import rich.text  # noqa: F401
import sqlalchemy.dialects.sqlite  # noqa: F401
import typer.rich_utils  # noqa: F401

import runtime.edges.cli.app
import runtime.orchestration
import runtime.store.listing  # noqa: F401


def become_console(job):
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["env"])
    write = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    for number, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, job["stdout"], write),
        (2, job["stderr"], write),
    ):
        os.dup2(os.open(path, flags, 0o600), number)
    sys.argv = ["agent-runtime", *job["arguments"]]
    runpy.run_module("runtime.edges.cli", run_name="__main__")


gc.freeze()
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        try:
            become_console(json.loads(line))
        except SystemExit as ended:
            sys.stdout.flush()
            sys.stderr.flush()
            # Without taking apart all that the server has imported.
            os._exit(ended.code or 0)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
    sys.stdout.flush()

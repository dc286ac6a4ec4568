"""Runs the command line as ``python -m runtime.edges.cli``."""

from runtime.edges.cli.app import main

main()

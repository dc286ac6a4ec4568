"""The command line ``agent-runtime``: one file per command group."""

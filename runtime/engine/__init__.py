"""Load, decide, start, act, record, publish: the life of turns, tool calls and sessions."""

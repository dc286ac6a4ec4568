"""Real parts for tests: databases, Valkey, workers, and a workspace with tools that leave a ledger."""

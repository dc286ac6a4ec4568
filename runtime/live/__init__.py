"""Redis: key names, evidence streams, approval waits, and the publisher of task messages."""

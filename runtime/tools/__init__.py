"""Tools: how they are declared and found, and how one call of one of them is run."""

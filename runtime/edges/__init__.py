"""Where the runtime meets people and processes: the command line, the demo and the embedded stack."""

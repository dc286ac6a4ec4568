"""The pure core: what is allowed and what happens next, without I/O, clock or randomness."""

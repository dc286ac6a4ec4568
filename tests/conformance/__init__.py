"""Conformance to the reference's vectors: an adapter per file and one test per record."""

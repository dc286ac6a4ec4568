"""Decides every governed call and builds its receipts."""

"""Frozen models whose features others learn from or are measured on: one file a family."""

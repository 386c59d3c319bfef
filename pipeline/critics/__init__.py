"""Adversaries of a tokenizer: one file an architecture."""

"""Frozen models of text whose features of captions condition tokenizers and generators: one file a kind."""

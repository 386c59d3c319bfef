"""Checkpoints of other projects, turned into our folders: one file a format."""

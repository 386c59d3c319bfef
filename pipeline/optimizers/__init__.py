"""Optimisers: one file a method."""

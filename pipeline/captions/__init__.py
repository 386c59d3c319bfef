"""Captions of images: collected from a source, encoded once each, and read as conditions by row."""

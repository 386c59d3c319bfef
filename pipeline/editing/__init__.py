"""The image side of a pipeline: pictures that are given, their codes, and what of them stays in an edit."""

"""Whether a recipe is right, before anything runs: one file for each part of the line."""

"""Adversarial losses, of the critic and of what it judges: one file per loss."""

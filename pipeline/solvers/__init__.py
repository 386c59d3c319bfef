"""Solvers: one file each, found by its name in `sample.sampler.solver`; each states which problem it solves."""

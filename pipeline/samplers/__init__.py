"""The arithmetic that objectives share: paths and chains of noise, solvers, and the ways to fill in ids."""

"""What a generator is made of: one file an architecture."""

"""How the rows that a network has for each code are made for a new codebook: one file a way."""

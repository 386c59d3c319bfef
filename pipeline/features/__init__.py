"""Features of images: the networks that extract them, their statistics, and which of them this machine has."""

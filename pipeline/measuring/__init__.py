"""What is measured of tokenizers, samples and runs: the task, its parts, and what is compared with what."""

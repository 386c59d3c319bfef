"""What the one loop and its tasks are made of: batches, averages, checkpoints, heads of losses, the adversary."""

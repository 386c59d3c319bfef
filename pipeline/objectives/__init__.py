"""What a network is trained under and sampled by: one file a method."""

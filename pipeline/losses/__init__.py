"""Terms of the reconstruction loss: one file a method."""

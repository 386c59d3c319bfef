"""What squeezes features into a code: one file a method."""

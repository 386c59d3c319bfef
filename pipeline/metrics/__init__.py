"""What is measured on images: one file a method."""

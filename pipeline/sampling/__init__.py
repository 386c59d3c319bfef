"""Images from a pipeline: many into a folder, interpolations, and the weak network of AutoGuidance."""

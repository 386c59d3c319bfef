"""Published vision models: where their weights lie, and how they are loaded and read."""

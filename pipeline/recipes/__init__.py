"""What a recipe may state: its schema, its files, and what is built from it."""

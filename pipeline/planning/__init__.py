"""What a recipe asks of a machine before it is trained: memory, disk and time; measured where that can be, and said."""

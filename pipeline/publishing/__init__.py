"""Folders that other people load: of this library, of diffusers alone, and their model card."""

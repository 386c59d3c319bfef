"""The store of codes: its files, the encoding of images into it, and the scale of codes."""

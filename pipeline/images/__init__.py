"""Images read, prepared for the line, and written as files."""

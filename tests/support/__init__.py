"""What several tests use: tiny components, folders and files, other processes."""

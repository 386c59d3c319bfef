"""Files and folders of this machine: found, listed, hashed, written whole, and compared with what was written."""

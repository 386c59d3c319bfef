"""Files that others may read: safetensors writes them for their owner alone."""

import os
from pathlib import Path


def ordinary_modes(folder: Path) -> None:
    """Give everything below `folder` the modes that open() and mkdir() would."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)

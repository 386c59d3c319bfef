"""How this program was started: for messages that say what to type next."""

import sys
from pathlib import Path


def command_line(*words: str) -> str:
    """`words` after the program's name as it was typed: `tessera`, else `python run.py`."""
    started = Path(sys.argv[0])
    if started.stem == "tessera":
        return " ".join(["tessera", *words])
    return " ".join(["python", sys.argv[0] if started.name == "run.py" else "run.py", *words])

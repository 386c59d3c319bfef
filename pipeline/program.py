"""How this program was started: for messages that say what to type next."""

import sys
from pathlib import Path


def command_line(*words: str) -> str:
    """`words` after the program's name as it was typed: `tessera`, else `python run.py`."""
    return " ".join([*([] if _installed() else ["python"]), _name(), *words])


def launch_line(*words: str) -> str:
    """The same for several processes, by torchrun."""
    return " ".join(["torchrun --nproc_per_node 8", *(["--no-python"] if _installed() else []), _name(), *words])


def _installed() -> bool:
    """Whether the wheel's command was typed."""
    return Path(sys.argv[0]).stem == "tessera"


def _name() -> str:
    if _installed():
        return "tessera"
    return sys.argv[0] if Path(sys.argv[0]).name == "run.py" else "run.py"

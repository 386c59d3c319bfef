"""Processes of this Python that have the project imported as they start, for tests that need several.

A server imports it once, and each process is a fork of it: they begin at once, and not after the seconds of an import.
"""

import multiprocessing
import os
import runpy
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["pipeline.latent_pipeline", "accelerate", "stages"])


@dataclass
class Started:
    """A process, and the file that it prints to."""

    process: BaseProcess
    log: Path

    def finish(self, seconds: float = 120) -> str:
        """What it printed, once it has ended; where it failed, or does not end, so does the test."""
        status = self.wait(seconds)
        assert status == 0, f"status {status}: {self.printed()[-3000:]}"
        return self.printed()

    def wait(self, seconds: float = 120) -> int | None:
        """Its status, minus the number of the signal that ended it; None, and an end to it, after these seconds."""
        self.process.join(seconds)
        status = self.process.exitcode
        self.process.kill()
        return status

    def printed(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


def start(
    function: Callable[..., None],
    *arguments: object,
    log: Path,
    cwd: Path | None = None,
    environment: dict[str, str] | None = None,
) -> Started:
    """A process that calls a function of a module with these arguments; `environment` is added to this one's."""
    log.unlink(missing_ok=True)
    given = (function, arguments, log, cwd or Path.cwd(), dict(os.environ) | (environment or {}))
    process = SERVER.Process(target=begin, args=given, daemon=True)
    process.start()
    return Started(process, log)


def start_script(
    script: Path, *arguments: object, log: Path, cwd: Path | None = None, environment: dict[str, str] | None = None
) -> Started:
    """A process that runs a script as its main program."""
    return start(run_script, script, [str(each) for each in arguments], log=log, cwd=cwd, environment=environment)


def start_two(script: Path, *arguments: object, log: Path, cwd: Path | None = None, **added: str) -> list[Started]:
    """Two processes of a script that are the ranks 0 and 1 of one job; each prints to a file named for its rank."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"} | added
    return [
        start_script(
            *(script, *arguments),
            log=log.with_name(f"{log.name}_{rank}"),
            cwd=cwd,
            environment=meeting | {"RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in ("0", "1")
    ]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def begin(function: Callable[..., None], arguments: tuple, log: Path, cwd: Path, environment: dict[str, str]) -> None:
    """What a process does."""
    printed = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(printed, stream)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    function(*arguments)


def run_script(script: Path, arguments: list[str]) -> None:
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")

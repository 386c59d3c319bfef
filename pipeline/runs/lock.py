"""A lock on a folder that ends with the process that holds it, however that ends."""

import errno
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LOCK = ".lock"  # in the folder that it is of
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


@contextmanager
def hold(file: Path, what: str) -> Iterator[None]:
    """Hold the lock `file` on `what` while the block runs.

    Raises ValueError that names the process which holds it, where another one does. The lock is the process's own:
    a fork has no part in it. On a file system without locks a line says so, and the process is looked for by its pid.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        supported = take(descriptor, what)
        if not supported:
            refuse_living(read_holder(descriptor), file, what)
            print(f"{file.parent} lies on a file system without locks: give only one command at a time on {what}")
        write_holder(descriptor, {"pid": os.getpid(), "host": socket.gethostname(), **started()})
        try:
            yield
        finally:
            write_holder(descriptor, None)
    finally:
        os.close(descriptor)  # the lock ends here


def take(descriptor: int, what: str) -> bool:
    """Lock the open file; False where the file system has no locks, ValueError where another process has it."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            return False
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        holder = describe(read_holder(descriptor))
        raise ValueError(f"{what} is in use by {holder}; wait for it to end, or stop it") from None
    return True


def refuse_living(holder: dict[str, Any] | None, file: Path, what: str) -> None:
    """ValueError unless the process that wrote `holder` is known to have ended."""
    if holder is None or holder["pid"] == os.getpid():
        return
    if holder["host"] == socket.gethostname() and not is_alive(holder["pid"]):
        return
    raise ValueError(f"{what} is in use by {describe(holder)}; wait for it to end; if it has ended, delete {file}")


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True


def started() -> dict[str, str]:
    return {"command": " ".join(sys.argv), "since": time.strftime("%Y-%m-%d %H:%M:%S")}


def write_holder(descriptor: int, holder: dict[str, Any] | None) -> None:
    os.ftruncate(descriptor, 0)
    if holder is not None:
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)


def read_holder(descriptor: int) -> dict[str, Any] | None:
    """Who has written itself into the lock; None where nobody has, or is about to."""
    try:
        holder = json.loads(os.pread(descriptor, 1 << 16, 0))
        return {"pid": int(holder["pid"])} | {name: str(holder[name]) for name in ("host", "command", "since")}
    except (ValueError, KeyError, TypeError):
        return None


def holder_of(file: Path) -> dict[str, Any] | None:
    """The process that holds a lock; None where none does, or it is known to have ended."""
    if not file.is_file():
        return None
    descriptor = os.open(file, os.O_RDONLY)
    try:
        holder = read_holder(descriptor)
    finally:
        os.close(descriptor)
    if holder is None or holder["host"] == socket.gethostname() and not is_alive(holder["pid"]):
        return None
    return holder


def describe(holder: dict[str, Any] | None) -> str:
    if holder is None:
        return "another process"
    return f"process {holder['pid']} on {holder['host']} since {holder['since']} ({holder['command']})"

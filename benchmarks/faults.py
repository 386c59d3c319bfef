"""Kills, full disks and damaged files on whole lines, small ones; counts what was survived, noticed and used silently.

    python benchmarks/faults.py [--kills 200] [--only kills,disk,damage] [--lines continuous,joint] [--quick] [--seed 0]

Kills: `run.py all` of four lines (continuous, discrete, post-trained, joint) gets SIGKILL at random times, is continued
by the same command each time, and in the end publishes the bits of an unkilled run. Disk: the file system of a line is
full at every stage; the command ends with a line, and continues to the same bits once there is space. It is a tmpfs
where this process may mount one (as root on Linux), and else a limit on the size of every file (RLIMIT_FSIZE). Damage:
every file of a finished run is cut, emptied, and has a bit flipped, and what reads its artefact next is run on it: the
next stage, or for what is published the loading of the pipeline and one image.

`noticed` is status 1 or 2 with one line and no traceback; `unused` is a result of the same bits; `silent` is another
result, and must be 0, as must be `stuck`, `different` and `raw error`: the status is 1 where one is not.

Every command is a fork of this process, which has imported all that it needs; the stand-in classifiers are trained for
a few steps. About an hour on two cores; with --quick, some minutes.
"""

import argparse
import contextlib
import functools
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import run  # noqa: E402
import stages  # noqa: E402
from pipeline import LatentPipeline  # noqa: E402
from pipeline.features import judge  # noqa: E402
from pipeline.frozen import stand_in  # noqa: E402
from pipeline.runs.finished import run_folder  # noqa: E402

KL = {"pixel": 1.0, "kl": 1e-4}
FLOW = {"objective": {"kind": "flow_matching"}, "weights": {"flow": 1.0}}


def loop(*players: str) -> dict[str, Any]:
    times = {"steps": 12, "batch": 8, "save_every": 4, "log_every": 1}
    return times | {"lr": dict.fromkeys(players, 1e-3), "ema": 0.9}


def phase(weights: dict[str, float], *players: str) -> dict[str, Any]:
    return {"losses": {"pixel": {"kind": "pixel", "norm": "l2"}}, "weights": weights, "loop": loop(*players)}


def recipe(weights: dict[str, float], bottleneck: dict[str, Any], network: str, generator: dict[str, Any]) -> dict:
    """A whole line on small drawn shapes."""
    model = {"kind": "conv_autoencoder", "width": 8, "multipliers": [1, 2], "groups": 4, "bottleneck": bottleneck}
    sizes = {"kind": network, "depth": 1, "width": 32, "heads": 2}
    return {
        "name": "line",
        "data": {"source": {"kind": "shapes", "images": 48, "held_out": 16, "size": 16}, "size": 16},
        "tokenizer": {"model": model, "phases": {"main": phase(weights, "tokenizer")}},
        "latents": {"shard": 16},
        "generator": {"network": sizes, "loop": loop("network")} | generator,
        "sample": {"images": 6, "batch": 2, "steps": 2},
        "evaluate": {"features": ["pixels"], "images": 16, "neighbours": 1},
    }


def lines() -> dict[str, dict[str, Any]]:
    """The four recipes, by name."""
    continuous = (KL, {"kind": "gaussian", "dim": 4}, "diffusion_transformer")
    ids = {"kind": "finite_scalar", "levels": [5, 5]}
    masked = {"objective": {"kind": "masked_token"}, "weights": {"masked_token": 1.0}}
    aligned = {"kind": "feature_cosine", "teacher": "classifier", "block": 1, "head": {"hidden": 32}}
    together = {"losses": {"alignment": aligned}, "weights": {"flow": 1.0, "feature_cosine": 0.5}, "start": "joint"}
    posttrain = {"pairs": 24, "held_out": 8, "preserve": 0.8, "route": "tokens", "check_every": 4, "patience": 3}
    posttrain |= {"phase": {"train": "decoder"} | phase({"pixel": 1.0}, "tokenizer")}
    joint = {"phase": phase(KL, "tokenizer", "network"), "alignment": {"feature_cosine": 0.05}}
    return {
        "continuous": recipe(*continuous, FLOW),
        "discrete": recipe({"pixel": 1.0}, ids, "bidirectional_transformer", masked),
        "post-trained": recipe(*continuous, FLOW) | {"posttrain": posttrain},
        "joint": recipe(*continuous, FLOW | together) | {"joint": joint},
    }


LINES = lines()
READERS = {  # the stage that reads an artefact next
    "tokenizer": "train_jointly",
    "joint": "encode_dataset",
    "latents": "train_generator",
    "generator": "posttrain_decoder",
    "decoder": "sample",
    "samples": "evaluate",
    "report": "publish",
}
ERRORS = ("noticed", "raw error")
FINISHED = "finished"  # the runs of a line that nothing happened to
SPACE = 2**26  # bytes of a disk that is large enough for a line
RECIPE = "recipe.yaml"  # of a run, read by what finds it again
DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "cut": lambda content, chance: content[: chance.randrange(1, len(content))] if len(content) > 1 else b"",
    "emptied": lambda content, chance: b"",
    "flipped": lambda content, chance: flip(content, chance.randrange(8 * len(content))),
}


def flip(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@dataclass
class Ended:
    """How a command ended: its status (None: killed) and all that it wrote."""

    status: int | None
    output: str

    @property
    def in_one_line(self) -> bool:
        lines = [line for line in self.output.splitlines() if line.startswith("tessera: ")]
        return self.status in (1, 2) and len(lines) == 1 and "Traceback" not in self.output


@dataclass
class Counts:
    """Outcomes by row of a table, and what is to be looked at."""

    rows: dict[str, Counter[str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def add(self, row: str, outcome: str, fault: str = "") -> None:
        self.rows.setdefault(row, Counter())[outcome] += 1
        if fault:
            self.faults.append(f"{row}: {outcome}: {fault}")

    def print(self, title: str) -> None:
        print(f"\n{title}")
        for row, counter in self.rows.items():
            print(f"  {row:<24}" + "  ".join(f"{name} {number}" for name, number in sorted(counter.items())))
        for fault in self.faults:
            print(f"  ! {fault}")


def fork(work: Callable[[], int | None], folder: Path, limit: int | None = None) -> tuple[int, Path]:
    """A process that does `work` in `folder`, with a limit in bytes on every file; its pid, and what it writes to."""
    log = Path(tempfile.mkstemp(prefix="faults-", suffix=".log")[1])
    if pid := os.fork():
        return pid, log
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_TRUNC)
        os.dup2(descriptor, 1), os.dup2(descriptor, 2)
        os.chdir(folder)
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        status = work() or 0
    except BaseException as error:
        import traceback

        traceback.print_exc()
        status = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 70
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(status)


def wait(started: tuple[int, Path], seconds: float | None = None) -> Ended:
    """Wait for a process; with `seconds` it is killed where it has not ended by then."""
    pid, log = started
    end = None if seconds is None else time.monotonic() + seconds
    while end is not None and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            break
        time.sleep(0.002)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    output = log.read_text(errors="replace").replace("\r", "\n")
    log.unlink()
    return Ended(None if code == -signal.SIGKILL else code, output)


def line(folder: Path, command: str = "all", **options: int | None) -> tuple[int, Path]:
    """Start a command on the recipe in `folder`."""
    return fork(lambda: run.main([command.replace("_", "-"), "line.yaml"]), folder, **options)


def made(folder: Path) -> str:
    """A hash of what a run has published: the weights and configs of its pipeline, and the numbers of its report."""
    digest = hashlib.sha256()
    run_of = folder / "runs" / "line"
    for path in sorted([*run_of.glob("pipeline/*/*.safetensors"), *run_of.glob("pipeline/*/*config.json")]):
        digest.update(str(path.relative_to(run_of)).encode() + path.read_bytes())
    return digest.hexdigest()


@contextlib.contextmanager
def place(name: str) -> Iterator[Path]:
    """A new folder that holds a line's recipe."""
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        Path(folder, "line.yaml").write_text(json.dumps(LINES[name]))  # which is YAML, too
        yield Path(folder)


def unkilled(folder: Path) -> tuple[str, float]:
    """What a line publishes when nothing happens to it, and the seconds that it takes."""
    started = time.monotonic()
    ended = wait(line(folder))
    if ended.status != 0:
        raise RuntimeError(f"the line does not run at all: {ended.output[-2000:]}")
    return made(folder), time.monotonic() - started


def kill(count: int, names: list[str], chance: random.Random) -> Counts:
    """SIGKILL the lines `count` times together, after parts of the time that they take, and often early."""
    counts = Counts()
    for name in names:
        with place(name) as folder:
            whole, seconds = unkilled(folder)
        left = -(-count // len(names))
        while left > 0:
            with place(name) as folder:
                ended = Ended(None, "")
                while ended.status is None:
                    after = chance.uniform(0, seconds / chance.choice((2, 4, 16))) if left > 0 else None
                    ended = wait(line(folder), after)
                    if ended.status is None:
                        left -= 1
                        counts.add(name, "killed")
                if ended.status != 0:
                    counts.add(name, "stuck", ended.output[-300:])
                else:
                    same = made(folder) == whole
                    counts.add(name, "ended equal" if same else "ended different", "" if same else "other weights")
    return counts


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[bool]:
    """`folder` as a file system of `size` bytes while the block runs; False where this process may not mount one."""
    folder.mkdir(exist_ok=True)
    mounted = mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def mount(*arguments: str) -> bool:
    if shutil.which("mount") is None:
        return False
    return subprocess.run(["mount", *arguments], capture_output=True).returncode == 0


def begin(folder: Path, count: int) -> None:
    """Copy the recipe and the artefacts of the first `count` stages of the line that lies in FINISHED."""
    source, run_of = folder / FINISHED / "line", folder / "runs" / "line"
    run_of.mkdir(parents=True)
    shutil.copy2(source / RECIPE, run_of / RECIPE)
    for stage in stages.table()[:count]:
        shutil.copytree(source / stage.writes, run_of / stage.writes)


def size_of(folder: Path) -> int:
    """Bytes of the files below a folder, in whole blocks."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


def fill_disk(names: list[str], parts: tuple[float, ...]) -> Counts:
    """A disk that is full when a stage has written a part of its artefact, at every stage; then more space."""
    counts = Counts()
    for name in names:
        with place(name) as folder:
            whole, _ = unkilled(folder)
            (folder / "runs").rename(folder / FINISHED)
            for number, stage in enumerate(stages.table()):
                for part in parts:
                    room = int(part * size_of(folder / FINISHED / "line" / stage.writes))
                    fill_once(counts, name, folder, number, room, whole)
    return counts


def fill_once(counts: Counts, name: str, folder: Path, number: int, room: int, whole: str) -> None:
    """Continue a line from stage `number` with `room` bytes, and then with space enough."""
    shutil.rmtree(folder / "runs", ignore_errors=True)
    with small_disk(folder / "runs", SPACE) as mounted:
        begin(folder, number)
        if mounted:
            state = os.statvfs(folder / "runs")
            used = (state.f_blocks - state.f_bavail) * state.f_frsize
            mount("-o", f"remount,size={used + max(room, 4096)}", str(folder / "runs"))
        first = wait(line(folder, limit=None if mounted else room // 4))
        if first.status == 0:
            counts.add(name, "had space")
            return
        stopped = [text.split(" -> ")[0] for text in first.output.splitlines() if " -> runs" in text] or ["-"]
        counts.add(f"{name}, full in", stopped[-1])
        told = first.in_one_line
        counts.add(name, "noticed" if told else "raw error", "" if told else first.output[-300:])
        if mounted:
            mount("-o", f"remount,size={SPACE}", str(folder / "runs"))
        second = wait(line(folder))
        survived = second.status == 0 and made(folder) == whole
        counts.add(name, "continued" if survived else "stuck", "" if survived else second.output[-300:])


def damage(name: str, chance: random.Random, share: float) -> Counts:
    """Every file of a finished run, or a share of them, cut, emptied and flipped."""
    counts = Counts()
    with place(name) as folder:
        unkilled(folder)
        root = folder / "runs" / "line"
        whole = {artefact: result(folder, artefact) for artefact in (*READERS, "pipeline", RECIPE)}
        for file in sorted(path for path in root.rglob("*") if path.is_file() and path.stat().st_size):
            artefact = file.relative_to(root).parts[0]
            for how, change in DAMAGES.items():
                if chance.random() < share:
                    with changed(file, lambda content, change=change: change(content, chance)):
                        found = result(folder, artefact)
                    outcome = found if found in ERRORS else "unused" if found == whole[artefact] else "silent"
                    right = outcome in ("noticed", "unused")
                    counts.add(how, outcome, "" if right else str(file.relative_to(root)))
    return counts


@contextlib.contextmanager
def changed(file: Path, change: Callable[[bytes], bytes]) -> Iterator[None]:
    """A file with another content while the block runs."""
    content, state = file.read_bytes(), file.stat()
    file.write_bytes(change(content))
    yield
    file.write_bytes(content)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))


def result(folder: Path, artefact: str) -> str:
    """What comes of an artefact as it is: one of ERRORS, or a hash of what is made of it."""
    with tempfile.TemporaryDirectory(prefix="faults-") as copied:
        shutil.copytree(folder, copied, dirs_exist_ok=True)
        if artefact in READERS:
            reader = READERS[artefact]
            writes = Path(copied, "runs", "line", stages.describe(reader).writes)
            shutil.rmtree(writes)
            ended = wait(line(Path(copied), reader))
            content: Any = contents(writes)
        else:
            ended = wait(fork(look_at_recipe if artefact == RECIPE else look_at_pipeline, Path(copied)))
            content = ended.output.splitlines()[-1:]
        if ended.status == 0:
            return hashlib.sha256(repr(content).encode()).hexdigest()
        return "noticed" if ended.in_one_line else "raw error"


def contents(folder: Path) -> list[tuple[str, str]]:
    """What a stage made, by file; without what tells when and how long."""
    kept = [path for path in sorted(folder.rglob("*")) if path.suffix in (".safetensors", ".png", ".npz")]
    kept += [path for path in folder.rglob("*config.json")]
    kept += [path for path in folder.rglob("metrics.json")]
    return [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in kept]


def look_at_pipeline() -> int:
    """Load the published pipeline, and make an image; as run.py tells an error."""

    def make() -> None:
        pipe = LatentPipeline.from_pretrained("runs/line/pipeline")
        image = pipe(0 if pipe.num_classes else None, num_inference_steps=2, output_type="np").images
        print("\n" + hashlib.sha256(image.round(3).tobytes()).hexdigest())

    return told(make)


def look_at_recipe() -> int:
    return told(lambda: print("\n" + str(run_folder("runs/line"))))


def told(work: Callable[[], None]) -> int:
    import torch

    torch.manual_seed(0)
    try:
        work()
    except ValueError as error:
        return run.complain(error, 2)
    except Exception as error:
        if (message := run.expected(error)) is None:
            raise
        return run.complain(message, 1)
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--only", default="kills,disk,damage", help="kinds, with commas between them")
    parser.add_argument("--lines", default=",".join(LINES), help="lines, with commas between them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="8 kills, one full disk a stage, a tenth of the damages")
    options = parser.parse_args()
    os.environ |= {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
    stand_in.train_stand_in = functools.partial(stand_in.train_stand_in, steps=4)
    judge.fit = functools.partial(judge.fit, steps=4)
    chance, kinds, names = random.Random(options.seed), options.only.split(","), options.lines.split(",")
    silent = 0
    if "kills" in kinds:
        counts = kill(8 if options.quick else options.kills, names, chance)
        counts.print("Killed at random times, and continued")
        silent += len(counts.faults)
    if "disk" in kinds:
        counts = fill_disk(names[:1] if options.quick else names, (0.5,) if options.quick else (0.2, 0.5, 0.9))
        counts.print("A full disk, and then more space")
        silent += len(counts.faults)
    if "damage" in kinds:
        for name in names[:1] if options.quick else names:
            counts = damage(name, chance, 0.1 if options.quick else 1.0)
            counts.print(f"Damaged files of the {name} line, by what was done to them")
            silent += len(counts.faults)
    raise SystemExit(1 if silent else 0)


if __name__ == "__main__":
    main()

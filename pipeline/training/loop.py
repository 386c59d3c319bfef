"""The training loop. There is one."""

import contextlib
import logging
import math
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pipeline.draws import StepDraws
from pipeline.nn.devices import copies_pinned
from pipeline.recipes.arithmetic import Precision
from pipeline.recipes.loops import Loop
from pipeline.runs.precision import autocast, rounding
from pipeline.runs.sharding import Sharding
from pipeline.training import checkpoints
from pipeline.training.checkpoints import Progress
from pipeline.training.ema import Average, Averages
from pipeline.training.held_out import Measuring
from pipeline.training.journal import Journal
from pipeline.training.order import MicroBatches, TrainingData, batches
from pipeline.training.players import prepare
from pipeline.training.previews import Previews, PreviewSources
from pipeline.training.rates import learning_rate
from pipeline.training.sharding import average_undivided_gradients, clip_gradients
from pipeline.training.task import Task
from pipeline.training.trackers import Trackers

log = logging.getLogger(__name__)


AfterStep = Callable[[int, Averages], bool]  # (step, averages) -> whether training ends; asked after every step


class Interrupted(Exception):
    """Training was asked to stop; a checkpoint was saved, and the same command resumes from it."""


@dataclass(frozen=True)
class TrainingRun:
    """How, where and for how long a task is trained."""

    loop: Loop
    folder: Path  # of its checkpoints and metrics.jsonl
    seed: int
    accelerator: Accelerator
    workers: int = 0  # processes that read data
    after_step: AfterStep | None = None  # called before a step is saved; its answer is the same in all processes
    precision: Precision = "fp32"  # of the task's turns: networks, teachers and critics alike
    sharding: Sharding | None = None  # divides the blocks of players among the processes; None: each has them whole
    preview_sources: PreviewSources | None = None  # what previews and an early stop look at; None: there are none
    name: str = "training"  # that trackers know it by


@dataclass
class Training:
    """A training under way."""

    task: Task
    run: TrainingRun
    micro_batches: MicroBatches
    progress: Progress
    journal: Journal
    pinned: bool  # whether batches lie in memory that the device copies from while it computes


def train(task: Task, data: TrainingData, run: TrainingRun) -> dict[str, nn.Module]:
    """The averages of all players after `loop.steps`; a training that has a checkpoint in its folder resumes from it.

    The result is a function of (task, data, loop, seed): any number of processes gives the same up to rounding, so
    does any number of accumulated micro-batches but for what `pipeline.checks.accumulation` names, and a training that
    was killed and started again gives the same to the bit. With `loop.early_stop` they are those of the smallest
    held-out loss. Raises Interrupted after SIGINT or SIGTERM,
    FloatingPointError after `loop.skip` consecutive non-finite steps, or where the last ones were.
    """
    loop, accelerator = run.loop, run.accelerator
    micro = MicroBatches(loop.batch, loop.accumulate, accelerator.process_index, accelerator.num_processes)
    averages = {name: Average(player, loop.average_of(name), loop.ema_warmup) for name, player in task.players.items()}
    progress = Progress(averages)
    if run.precision == "fp16":
        progress.scaler = torch.amp.GradScaler(accelerator.device.type)
    prepare(task, loop, progress, accelerator, run.sharding)
    checkpoints.restore(accelerator, run.folder, progress, task.players)
    trackers = Trackers(accelerator, run.name, loop)
    journal = Journal(accelerator, run.folder, progress.step, loop, trackers)
    training = Training(task, run, micro, progress, journal, copies_pinned(accelerator.device))
    measuring = Measuring(task, loop.steps - 1, run.seed, accelerator, run.precision)
    previews = Previews(run.preview_sources, loop, run.folder, measuring, trackers, progress.step)
    source = batches(data, micro, run.seed, progress.step, run.workers, training.pinned)
    with stop_requests() as requests, contextlib.closing(journal), contextlib.closing(source), rounding(run.precision):
        while progress.step < loop.steps and not previews.ended:
            train_step(training, source)
            ended = run.after_step is not None and run.after_step(progress.step, progress.modules)
            ended |= previews(progress.step, progress.modules)
            last = ended or progress.step == loop.steps
            stopped = any_process(accelerator, bool(requests), progress.step)
            if stopped or last or (loop.save_every and progress.step % loop.save_every == 0):
                checkpoints.save(accelerator, run.folder, progress, task.players, loop.keep)
            if ended:
                break
            if stopped and not last:
                raise Interrupted(f"stopped at step {progress.step}, which is saved; the same command resumes from it")
    averages = progress.modules()
    previews.restore_best(progress.step, averages)
    check_ending(progress.skipped, loop.steps, averages)
    accelerator.free_memory()
    return averages


def train_step(training: Training, source: Iterator[Any]) -> None:
    """One optimiser step of every player, over `accumulate` micro-batches."""
    task, run, micro, progress = training.task, training.run, training.micro_batches, training.progress
    finite, accelerator = True, run.accelerator
    for number in range(micro.accumulate):
        final = number == micro.accumulate - 1
        with training.journal.waiting():
            batch = next(source)
        batch = batch.to(accelerator.device, non_blocking=training.pinned)
        draws = StepDraws(run.seed, progress.step, micro.positions(number), micro.batch, accelerator.device)
        with contextlib.ExitStack() as stack:
            for player in [] if final else task.players.values():
                stack.enter_context(accelerator.no_sync(player))
            for name, terms in turns_of(training, batch, draws):
                loss = sum(terms.values()) / micro.accumulate
                accelerator.backward(loss if progress.scaler is None else progress.scaler.scale(loss))
                for term, value in terms.items():
                    training.journal.add(f"{name}/{term}", value)
                if final:
                    finite &= update_player(training, name)
        for name, value in task.metrics.items():
            training.journal.add(name, value)
    if progress.scaler is not None:
        progress.scaler.update()
    progress.step += 1
    finish_step(training, finite)


def turns_of(training: Training, batch: Any, draws: StepDraws) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The task's turns, each computed by autocast; it ends before the caller goes back through them, or steps."""
    turns, device = training.task.turns(batch, draws, training.progress.step), training.run.accelerator.device
    while True:
        with autocast(device, training.run.precision):
            turn = next(turns, None)
        if turn is None:
            return
        yield turn


def update_player(training: Training, name: str) -> bool:
    """Clip the gradient and step the optimiser; a non-finite gradient changes nothing. Whether it was finite."""
    loop, scaler, optimizer = training.run.loop, training.progress.scaler, training.progress.optimizers[name]
    if scaler is not None:
        scaler.unscale_(optimizer)
    updated = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    average_undivided_gradients(updated)
    norm = clip_gradients(updated, loop.clip or math.inf)
    finite = bool(norm.isfinite())
    training.journal.add(f"{name}/gradient_norm", norm if finite else torch.zeros_like(norm))
    for group in optimizer.param_groups:
        group["lr"] = rate_at(training, group["rate"] or name, training.progress.step)
    if scaler is not None:  # it skips by itself, and lowers its scale
        scaler.step(optimizer)
    elif finite:
        optimizer.step()
    optimizer.zero_grad()
    return finite


def finish_step(training: Training, finite: bool) -> None:
    """Averages, the guard against non-finite gradients, and the log line after a step."""
    progress, run = training.progress, training.run
    loop = run.loop
    progress.skipped = 0 if finite else progress.skipped + 1
    if progress.skipped > loop.skip:
        raise FloatingPointError(
            f"{progress.skipped} steps in a row up to step {progress.step} had gradients that are not finite;"
            " lower the rate, or train in fp32 or bf16"
        )
    if finite:
        for name, average in progress.averages.items():
            average.update(run.accelerator.unwrap_model(training.task.players[name]), progress.step)
    values = {f"{name}/lr": rate_at(training, name, progress.step - 1) for name in loop.lr}
    training.journal.step(progress.step, progress.step == loop.steps, **values, skipped=progress.skipped)


def check_ending(skipped: int, steps: int, averages: Mapping[str, nn.Module]) -> None:
    """FloatingPointError where a finished training ended in failed steps, or in averages that are not finite.

    A single last step that was skipped is reported; two or more say that the training had gone wrong.
    """
    if skipped > 1:
        raise FloatingPointError(
            f"the last {skipped} of {steps} steps had gradients that are not finite, so that what they left is"
            " not kept; lower the rate, or train in fp32 or bf16"
        )
    if skipped:
        log.warning("the last of %d steps was skipped: its gradients were not finite", steps)
    for name, average in averages.items():
        for key, value in average.state_dict().items():
            if value.is_floating_point() and not value.isfinite().all():
                raise FloatingPointError(
                    f"the average of the {name} is not finite ({key}), and is not kept; lower the rate, or train in"
                    " fp32 or bf16"
                )


def rate_at(training: Training, player: str, step: int) -> float:
    """The learning rate of a player in a step of the training; its own steps count from its start."""
    loop, start = training.run.loop, training.task.starts.get(player, 0)
    return learning_rate(loop.rate_of(player), step - start, loop.steps - start)


@contextlib.contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A list that fills when SIGINT or SIGTERM arrives; a second one acts as usual."""
    received: list[int] = []
    previous: dict[int, Any] = {}

    def note(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(number, previous[number])

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, note)
    except ValueError:  # not the main thread, the only one that gets signals
        previous.clear()
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def any_process(accelerator: Accelerator, here: bool, step: int) -> bool:
    """Whether any process has a request to stop; several processes ask each other every tenth step."""
    if accelerator.num_processes == 1:
        return here
    if step % 10:
        return False
    return bool(accelerator.reduce(torch.tensor(float(here), device=accelerator.device), "sum") > 0)

"""The command line: the stages of a run that are missing or out of date, in order, and the commands beside them."""

import contextlib
import errno
import os
import sys
import time
import warnings
from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING

import stages
from pipeline.commands import COMMANDS
from pipeline.program import command_line, launch_line
from pipeline.validation import suggestion

if TYPE_CHECKING:
    from pipeline.checks.recipe import CheckedRecipe
    from pipeline.images.facts import UsedImages
    from pipeline.planning.line_clock import LineClock
    from pipeline.recipes.schema import Recipe
    from pipeline.runs.workspace import Workspace

SETTINGS = "[key=value ...]"
ALL = "Runs every stage that is missing or out of date"
HELP = ("--help", "-h", "help")
NO_MEMORY = ("can't allocate memory", "out of memory", "storage size calculation overflowed")  # in what torch raises
STOPS = ("Interrupted", "FloatingPointError", "SafetensorError")  # errors that say in one line what happened
USAGE = """Tessera trains image tokenizers and the generators on their latents, and publishes diffusers pipelines.

  {program} COMMAND [RECIPE] [key=value ...]

The whole line
  all RECIPE                  runs every stage that is missing or out of date, in order

One stage
{stages}

Other commands
{commands}

A RECIPE is a name in configs/ or a file. Any value of it can be changed on the line:

  {program} train-generator digits generator.loop.steps=2000
  {program} sample digits sample.images=64 sample.guidance=2.0

Results go to runs/<name>/. The same command again continues where it stopped. On several GPUs, or processes:

  {launcher} all RECIPE

{program} COMMAND --help says what a command takes. --debug before the command shows where an error came from."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command that `arguments`, by default those of the process, ask for; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments[:1]
    command, *words = arguments[debug:] or ["--help"]
    warnings.filterwarnings("ignore", message=".*pin_memory.*no accelerator.*")
    # torch reads this on import, and says for what an Apple GPU hands over to the CPU
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    try:
        if command in HELP:
            print(usage())
            return 0
        return dispatch(command.replace("-", "_"), words) or 0
    except ValueError as error:
        if debug:
            raise
        return complain(error, 2)
    except Exception as error:
        if debug or (message := expected(error)) is None:
            raise
        if command == "check":
            return complain(message, 2)
        return complain(message, 130 if type(error).__name__ == "Interrupted" else 1)
    except KeyboardInterrupt:
        return complain("stopped", 130)


def expected(error: Exception) -> str | None:
    """What to say where no fault of the program ended it: it was stopped, or left alone, or cannot write."""
    if type(error).__name__ in STOPS or isinstance(error, OSError):
        full = "(os error 28)" in str(error) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        return f"{error}{'; make space, and the same command continues' if full else ''}"
    if isinstance(error, MemoryError) or any(text in str(error).lower() for text in NO_MEMORY):
        reason = " ".join(str(error).split())[:100]
        return f"this machine has too little memory; give smaller sizes, or a smaller loop.batch ({reason})"
    if isinstance(error, RuntimeError):
        from pipeline.runs.processes import is_lost_connection

        if is_lost_connection(error):
            reason = str(error).strip().splitlines()[0]
            return f"another process of this command has ended; the same command continues ({reason})"
    return None


def complain(message: object, status: int) -> int:
    print(f"tessera: {' '.join(str(message).split())}", file=sys.stderr)
    return status


def dispatch(name: str, words: list[str]) -> int | None:
    """Run a stage, all of them, or another command; a stage's name with what is no recipe is the command of this name.

    Raises ValueError for a name that is neither, and for words that are missing.
    """
    others = {command.name: command for command in COMMANDS}
    known = ["all", *stages.ORDER, *others]
    if name not in known:
        raise ValueError(f"there is no command {name!r}{suggestion(name, known)}")
    if set(words) & set(HELP):
        return print(help_of(name))
    if name in others and (name not in stages.ORDER or words and not is_recipe(words[0])):
        command = others[name]
        if not words and not command.optional:
            raise ValueError(f"{name} needs {command.arguments}; type: {command_line(name, command.arguments)}")
        return command.run(words)
    if not words:
        listed = command_line("recipes")
        raise ValueError(f"{name.replace('_', '-')} needs a recipe, by name or as a file; `{listed}` lists them")
    from pipeline.recipes.schema import load

    recipe = load(words[0], words[1:])
    return run_stages(recipe, words[0], words[1:], None if name == "all" else name)


def is_recipe(word: str) -> bool:
    from pipeline.recipes import files

    return files.is_recipe(word)


def usage() -> str:
    """The help: the stages in their order, and the table of commands."""
    lines = [(stage.command, "RECIPE", stage.headline) for stage in stages.table()]
    return USAGE.format(
        program=command_line(),
        launcher=launch_line(),
        stages=listing(lines),
        commands=listing([(command.name, command.arguments, command.purpose) for command in COMMANDS]),
    )


def listing(rows: list[tuple[str, str, str]]) -> str:
    return "\n".join(f"  {f'{name} {arguments}':<28}{purpose}" for name, arguments, purpose in rows)


def help_of(name: str) -> str:
    """What a command does and takes; of a stage's name that is a command's, too, both."""
    texts = [help_of_stage(stage) for stage in stages.table() if stage.name == name]
    texts += [f"{command_line(name, other.arguments)}\n\n{other.help()}" for other in COMMANDS if other.name == name]
    if name == "all":
        order = ", ".join(stage.command for stage in stages.table())
        texts = [f"{command_line(name, 'RECIPE', SETTINGS)}\n\n{ALL}, in order:\n{order}."]
    return "\n\n".join(texts)


def help_of_stage(stage: stages.Stage) -> str:
    read = ", ".join(f"{name}/" for name in stage.reads + stage.reads_where_made) or "images"
    facts = f"It reads {read} and writes runs/<name>/{stage.writes}/, whole or not at all."
    return f"{command_line(stage.command, 'RECIPE', SETTINGS)}\n\n{stage.purpose}\n{facts}"


def find_stages(recipe: "Recipe", only: str | None) -> tuple[list[stages.Stage], str]:
    """The stages of a recipe up to that named `only`, where one is, and the command after them.

    ValueError where the recipe's line has no such stage.
    """
    line = [replace(one, images=splits_of(one, recipe), reads=reads_of(one, recipe)) for one in stages.line(recipe)]
    names = [stage.name for stage in line]
    if only is None or only == names[-1]:
        return line, "sample" if "samples" in [stage.writes for stage in line] else "card"
    if only not in names:
        needed = {read for stage in stages.table() for read in stage.reads}
        makers = [stage for stage in stages.table() if stage.name == only or stage.writes in needed]
        missing = {stage.needs for stage in makers} - {stage.needs for stage in line}
        there = ", ".join(stage.command for stage in line)
        raise ValueError(
            f"{recipe.name} has no stage {only.replace('_', '-')}, for it has no {', '.join(sorted(missing))}; it has"
            f" {there}"
        )
    after = names.index(only) + 1
    return line[:after], line[after].command


def check_reads(
    stage: stages.Stage, work: "Workspace", images: "UsedImages", because: dict[str, str], again: str
) -> None:
    """ValueError that says what to type unless all that a stage reads is there, and made `because` of the same."""
    for read in stage.reads:
        if not work.current(read, because[read]):
            raise ValueError(f"{work.root / read} is missing or out of date{reason(images, work, read)}; run: {again}")


def run_stages(recipe: "Recipe", name: str, overrides: list[str], only: str | None) -> None:
    """Run the stages that are missing or out of date; one of them `only` needs those before it to be current.

    The run is claimed when there is something to do: one that is up to date is only read.
    """
    from pipeline.checks.line import check_line
    from pipeline.checks.machine import check_processes
    from pipeline.checks.recipe import check_recipe
    from pipeline.checks.weights import check_weights
    from pipeline.images.facts import UsedImages
    from pipeline.recipes.files import origin
    from pipeline.recipes.schema import settings
    from pipeline.runs.machine import start
    from pipeline.runs.workspace import fingerprint

    table, following = find_stages(recipe, only)
    checked, work = check_recipe(recipe), start(recipe)
    images = UsedImages(recipe.data, work.history([one.writes for one in table]).values(), recipe.text is not None)
    line = check_line(recipe, checked, images.facts)
    check_processes(recipe, work.accelerator.num_processes)
    check_weights(recipe)
    clock = make_clock(recipe, checked, work, images, [one for one in table if only in (None, one.name)])
    because: dict[str, str] = {}
    with contextlib.ExitStack() as held:
        for stage in table:
            uses, made_of = stages.load(stage.name).uses(recipe), images.of(stage.images)
            because[stage.writes] = fingerprint(uses, made_of, [because[read] for read in stage.reads])
            if only not in (None, stage.name):
                continue
            if not work.current(stage.writes, because[stage.writes]):
                check_reads(stage, work, images, because, command_line("all", name))
                if work.claimed is None:
                    held.enter_context(work.claim(origin(name), settings(recipe)))
                    for text in line.weights + line.left_out + line.warnings if only is None else ():
                        work.say(text)
            if work.current(stage.writes, because[stage.writes]):  # another command may have ended meanwhile
                work.say(f"{stage.name}: {work.root / stage.writes} is up to date")
                clock.end(stage.writes)
                continue
            clock.begin(stage.writes, work.draft(stage.writes, because[stage.writes]).name)
            done = run_stage(stage, recipe, work, images, because[stage.writes])
            work.say(done + clock.end(stage.writes))
            if only is not None:
                work.say(f"next: {command_line(following, name, *overrides)}")
    if only is None:
        work.say(f"the report: {work.root / 'report' / 'index.html'}\npublished: {work.root / 'pipeline'}")


def splits_of(stage: stages.Stage, recipe: "Recipe") -> tuple[str, ...]:
    """The splits that a stage's result depends on, beside what it reads."""
    from pipeline.checks.previews import stops_early

    held_out = ("held_out",) if stops_early(recipe, stage.writes) else ()
    return tuple(dict.fromkeys(stage.images + held_out))


def reads_of(stage: stages.Stage, recipe: "Recipe") -> tuple[str, ...]:
    """The artefacts that a stage reads: the captions' features only where its tokenizer or its generator does."""
    from pipeline.recipes.building import reads_captions

    return tuple(read for read in stage.reads if read != "text" or reads_captions(recipe, stage.writes))


def make_clock(
    recipe: "Recipe", checked: "CheckedRecipe", work: "Workspace", images: "UsedImages", table: list[stages.Stage]
) -> "LineClock":
    """What keeps the progress of these stages."""
    from pipeline.checks.line import count_classes
    from pipeline.planning.line_clock import LineClock
    from pipeline.planning.line_progress import PlannedStage, plan_line

    def measure(places: Collection[str]) -> dict[str, float]:
        from pipeline.planning.timing import step_times

        return step_times(recipe, checked, count_classes(recipe, images.facts), places)

    without = [one.name for one in table if one.precision and getattr(recipe, one.precision) is None]
    planned = [PlannedStage(one.name, one.writes, one.name in without) for one in table]
    return LineClock(work, plan_line(recipe, planned, work.root), measure)


def run_stage(stage: stages.Stage, recipe: "Recipe", work: "Workspace", images: "UsedImages", because: str) -> str:
    """Make a stage's artefact, from others that are whole; returns a line that says so."""
    from pipeline.runs.precision import rounding
    from pipeline.runs.training_folders import training_folders

    images.check_unchanged(stage.images)
    for read in stage.reads:
        work.verify(read)
    final = work.root / stage.writes
    work.say(f"{stage.name} -> {final}{reason(images, work, stage.writes)}")
    started = time.monotonic()
    about = {"stage": stage.name, "reads": stage.reads, "seed": recipe.seed, "images": images.of(stage.images)}
    word = getattr(recipe.precision, stage.precision) if stage.precision else "fp32"
    about |= {"precision": word} if stage.precision else {}
    if steps := sum(one.loop.steps for one in training_folders(recipe) if one.artefact == stage.writes):
        about["steps"] = steps
    with work.publish(stage.writes, because, **about) as out, rounding(word):
        stages.load(stage.name).run(recipe, work, out)
    return f"{stage.name}: done in {time.monotonic() - started:.1f} s, {final}"


def reason(images: "UsedImages", work: "Workspace", artefact: str) -> str:
    """` (the training images have changed ...)` where an artefact was made of others, else nothing."""
    change = images.change_since(work.history([artefact]).values())
    return f" ({change})" if change else ""


if __name__ == "__main__":
    sys.exit(main())

"""The command line: a recipe and overrides to the stages that are missing or out of date, in order."""

import sys
import time
import warnings
from typing import TYPE_CHECKING

from stages import ORDER

if TYPE_CHECKING:
    from pipeline.recipes.schema import Recipe

USAGE = """Tessera trains image tokenizers and the generators on their latents, and publishes diffusers pipelines.

  python run.py COMMAND [RECIPE] [key=value ...]

The whole line
  all RECIPE               every stage that is missing or out of date, in order

One stage
{stages}

Without training
  check RECIPE             is the recipe right; parameters, latent shape, memory, disk; writes nothing
  recipes                  the recipes there are
  describe [NAME]          what a recipe can state: its sections and kinds; of one of them (generator.loop, titok), all
  doctor                   what this machine has: packages, devices, weight files
  card RUN|FOLDER          what a tokenizer is worth alone; of a folder state data.source.kind=... data.size=...
  sweep RUN                the same seeds at several settings: guidance=[1,1.25,1.5,2] steps=[10,25] sampler.NAME=[..]
  compare RUN RUN ...      runs side by side, in numbers and figures: out=DIR by=fd_pixels
  reference DATA OUT.npz   statistics of real images to measure samples against; DATA: a recipe, or a folder (size=256)
  sample FOLDER|HUB_ID     images from a published pipeline: labels=[3,7] images=16 steps=50 guidance=2 out=DIR
  import FORMAT FILE OUT [KEY=VALUE ...]   another project's checkpoint as our folders; import alone lists the formats

A RECIPE is a name in configs/ or a file. Any value of it can be changed on the line:

  python run.py train-generator digits generator.loop.steps=2000
  python run.py sample digits sample.images=64 sample.guidance=2.0

Results go to runs/<name>/. The same command again goes on where it stopped. On several GPUs, or processes:

  torchrun --nproc_per_node 8 run.py all RECIPE

--debug before the command shows where an error came from."""

PURPOSES = {
    "train_tokenizer": "images -> tokenizer/",
    "train_jointly": "tokenizer/ -> joint/, with a generator where the recipe says so",
    "encode_dataset": "joint/ -> latents/",
    "train_generator": "latents/ -> generator/",
    "posttrain_decoder": "latents/ + generator/ -> decoder/",
    "sample": "generator/ + decoder/ -> samples/",
    "evaluate": "samples/ + images -> report/",
    "publish": "everything -> pipeline/, a diffusers folder",
}


def main(arguments: list[str]) -> int:
    debug = "--debug" in arguments[:1]
    command, *rest = arguments[debug:] or ["--help"]
    if command in ("--help", "-h", "help") or "--help" in rest or "-h" in rest:
        print(usage())
        return 0
    warnings.filterwarnings("ignore", message=".*pin_memory.*no accelerator.*")
    try:
        return dispatch(command.replace("-", "_"), rest) or 0
    except ValueError as error:
        if debug:
            raise
        return complain(error, 2)
    except Exception as error:
        # training was asked to stop, or went wrong by itself; both have said so in one line
        if debug or type(error).__name__ not in ("Interrupted", "FloatingPointError"):
            raise
        return complain(error, 130 if type(error).__name__ == "Interrupted" else 1)
    except KeyboardInterrupt:
        return complain("stopped", 130)


def usage() -> str:
    lines = [f"  {name.replace('_', '-') + ' RECIPE':<25}{PURPOSES[name]}" for name in ORDER]
    return USAGE.format(stages="\n".join(lines))


def complain(message: object, status: int) -> int:
    print(f"tessera: {' '.join(str(message).split())}", file=sys.stderr)
    return status


def dispatch(command: str, rest: list[str]) -> int | None:
    from pipeline.validation import suggestion

    known = ("all", *ORDER, "check", "recipes", "describe", "doctor", "import", "card", "sweep", "compare", "reference")
    if command not in known:
        raise ValueError(f"there is no command {command!r}{suggestion(command, list(known))}")
    if command == "recipes":
        from pipeline.recipes.files import catalogue

        return print(catalogue())
    if command == "describe":
        from pipeline.recipes.describing import describe

        return print("\n\n".join(map(describe, rest)) if rest else describe())
    if command == "doctor":
        from pipeline.runs.doctor import examine

        return examine()
    if command == "reference":
        from pipeline.measuring.reference import reference_from_command_line

        return reference_from_command_line(rest)
    if command == "import":
        from pipeline.published import import_checkpoint

        return import_checkpoint(rest)
    if command == "compare":
        from pipeline.measuring.comparison import compare_from_command_line

        return compare_from_command_line(rest)
    if command == "card" and rest:
        from pipeline.measuring.card import card_from_command_line

        return card_from_command_line(rest[0], rest[1:])
    if command == "sweep" and rest:
        from pipeline.measuring.sweep import sweep_from_command_line

        return sweep_from_command_line(rest[0], rest[1:])
    if not rest:
        raise ValueError(f"{command.replace('_', '-')} needs a recipe; `python run.py recipes` lists them")
    return with_recipe(command, rest[0], rest[1:])


def with_recipe(command: str, name: str, overrides: list[str]) -> int | None:
    from pipeline.recipes.files import is_recipe
    from pipeline.recipes.schema import load

    if command == "sample" and not is_recipe(name):
        from pipeline.sampling.many_images import sample_from_command_line

        return sample_from_command_line(name, overrides)
    recipe = load(name, overrides)
    if command == "check":
        from pipeline.checks.summary import print_check

        return print_check(recipe)
    return run_stages(recipe, name, overrides, ORDER if command == "all" else (command,))


def run_stages(recipe: "Recipe", name: str, overrides: list[str], chosen: tuple[str, ...]) -> None:
    """Run the chosen stages that are missing or out of date; a single stage needs those before it to be current."""
    import stages
    from pipeline.checks.recipe import check_line
    from pipeline.recipes.files import origin
    from pipeline.recipes.schema import settings
    from pipeline.runs.machine import start
    from pipeline.runs.workspace import fingerprint

    check_line(recipe)
    work = start(recipe)
    work.claim(origin(name), settings(recipe))
    say = print if work.accelerator.is_main_process else (lambda *_: None)
    because: dict[str, str] = {}
    for number, stage_name in enumerate(ORDER):
        stage = stages.load(stage_name)
        because[stage.WRITES] = fingerprint(stage.uses(recipe), [because[read] for read in stage.READS])
        if stage_name not in chosen:
            continue
        if work.current(stage.WRITES, because[stage.WRITES]):
            say(f"{stage_name}: {work.root / stage.WRITES} is up to date")
            continue
        for read in stage.READS:
            if not work.current(read, because[read]):
                raise ValueError(f"{work.root / read} is missing or out of date; run: python run.py all {name}")
        say(f"{stage_name} -> {work.root / stage.WRITES}")
        started = time.monotonic()
        with work.publish(stage.WRITES, because[stage.WRITES], stage=stage_name, seed=recipe.seed) as out:
            stage.run(recipe, work, out)
        following = next_command(number, name, overrides)
        say(f"{stage_name}: done in {time.monotonic() - started:.1f} s, {work.root / stage.WRITES}")
        if chosen != ORDER:
            say(f"next: {following}")
    if chosen == ORDER:
        say(f"the report: {work.root / 'report' / 'index.html'}\nthe pipeline: {work.root / 'pipeline'}")


def next_command(number: int, name: str, overrides: list[str]) -> str:
    following = ORDER[number + 1].replace("_", "-") if number + 1 < len(ORDER) else "sample"
    return " ".join(["python run.py", following, name, *overrides])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

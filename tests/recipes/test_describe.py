"""`describe`: all that recipes state is said there, with its type and default, and nothing that they may not state."""

import functools
import inspect
import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest

import run
from pipeline.components import NESTED, find, kinds
from pipeline.recipes.derived import DERIVED
from pipeline.recipes.describing import PLACES, describe, matches, sections_of
from pipeline.recipes.files import CONFIGS, names, read
from pipeline.recipes.schema import Recipe

KINDS = [(slot, kind) for slot in PLACES for kind in kinds(slot)]
SECTIONS = dict(sections_of(Recipe))
settings_of = functools.cache(lambda name: settings(describe(name)))


def settings(text: str) -> set[str]:
    """The names that a description's listings begin their lines with."""
    return set(re.findall(r"^  (\w+): ", text, re.MULTILINE))


def test_the_overview_has_every_kind_and_every_section():
    text = describe()
    told = {line.split()[0] for line in text.splitlines() if line.startswith("  ")}
    assert told >= {kind for _, kind in KINDS} | {field.name for field in fields(Recipe) if field.name in SECTIONS}
    assert all(line.split(maxsplit=1)[1:] for line in text.splitlines() if line.startswith("  ")), (
        "each says what it is"
    )
    assert set(PLACES) == {*DERIVED, "bottlenecks"}, "every slot that a recipe names kinds of"


@pytest.mark.parametrize("slot, kind", KINDS)
def test_a_kind_s_settings_are_those_that_a_recipe_may_state(slot, kind):
    parameters = inspect.signature(find(slot, kind).__init__).parameters.values()
    own = {p.name for p in parameters if p.name != "self" and p.kind is not p.VAR_KEYWORD}
    text = describe(f"{slot}.{kind}")
    assert text.startswith(f"{kind}, at {PLACES[slot]}\n")
    assert own - set(DERIVED.get(slot, ())) <= settings(text)
    if slot != "objectives":  # which have settings of their samplers besides
        assert not [name for name in DERIVED.get(slot, ()) if f"\n  {name}: " in text]


def stated(values: dict[str, Any], path: str) -> Iterator[tuple[str, str, str]]:
    """Where, what and of which kind: every setting of a recipe's mapping, and every argument of the kinds it names."""
    for name, value in values.items():
        at = f"{path}.{name}" if path else name
        if not isinstance(value, dict):
            continue
        if "kind" in value and (slot := slot_of(at)):
            yield from ((at, argument, f"{slot}.{value['kind']}") for argument in value if argument != "kind")
        elif section := next((known for known in SECTIONS if matches(at, known)), None):
            yield from ((at, argument, section) for argument in value)
        if "kind" not in value or name == "model":
            yield from stated(value, at)


def slot_of(path: str) -> str | None:
    if (name := path.rpartition(".")[2]) in NESTED and NESTED[name] in PLACES:
        return NESTED[name]
    parts = path.split(".")
    if parts[-2:-1] == ["losses"]:
        return "losses"
    return next((slot for slot, place in PLACES.items() if place == path), None)


@pytest.mark.parametrize("name", names())
def test_all_that_a_recipe_states_is_described(name):
    found = list(stated(read(CONFIGS / f"{name}.yaml"), ""))
    assert len(found) > 20
    for at, setting, described in found:
        assert setting in settings_of(described), f"{at}.{setting}"


def test_a_setting_comes_with_its_type_default_and_meaning():
    loop = describe("tokenizer.phases.main.loop").splitlines()
    assert loop[0] == "tokenizer.phases.NAME.loop" and "  steps: int (0 or more)" in loop
    assert "  warmup: int (0 or more) = 0  # steps from there to the full rate" in loop
    assert "  optimizer: Node | dict[str, Node] = {'kind': 'adamw'}  # or by player" in loop
    below_one = "float (0 or more and below 1)"
    assert f"  betas: tuple[{below_one}, {below_one}] = [0.9, 0.95]" in "\n".join(describe("adamw").splitlines())
    assert describe("generator.loop.lr.network").splitlines()[0] == "generator.loop.lr.NAME"
    assert "  compile: bool = false  # the players, by torch.compile" in loop
    titok = describe("titok").splitlines()
    assert "  bottleneck: one of bottlenecks" in titok and "  proxy_start: str | None = null" in titok
    assert "  head: pixels | proxy = pixels" in titok


def test_samplers_and_records_are_described_with_what_takes_them():
    before, sampler = describe("flow_matching").split("At sample.sampler:")
    assert "\n  solver: dpmpp_2m | euler | heun | sde | sde_heun | unipc = euler" in sampler
    assert "solver" not in settings(before)
    assert not settings(sampler) & {"scheduler", "weak", "on_step", "steps", "guidance"}
    both = describe("gaussian")
    assert (
        both.count("gaussian, at ") == 2
        and "\nAnnealing: A factor" in both
        and "  to: float (from 0 to 1) = 0.5" in both
    )
    assert describe("perturbations.gaussian") in both and describe("bottlenecks.gaussian") in both


def test_parts_of_a_tokenizer_that_are_chosen_by_kind_are_described_with_it():
    text = describe("representation")
    for name in ("frozen_encoder.kind=stand_in", "texture_branch.kind=shallow", "pixel_decoder.kind=conv"):
        assert f"\n{name}: " in text
    assert "  norm: plain | own = plain" in text and "  taps: list[int] (1 entry or more) = [-1]" in text
    assert not settings(text) & {"image_size", "maps", "inputs", "stride"}


def test_the_command_prints_it_and_refuses_what_is_neither(capsys):
    assert run.main(["describe", "generator.loop", "patch"]) == 0
    assert capsys.readouterr().out == f"{describe('generator.loop')}\n\n{describe('patch')}\n"
    assert run.main(["describe"]) == 0 and capsys.readouterr().out == f"{describe()}\n"
    assert run.main(["describe", "generator.lop"]) == 2
    assert "nothing is called 'generator.lop'; did you mean 'generator.loop'?" in capsys.readouterr().err

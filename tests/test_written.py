"""Text of a command line stays text where a setting is one, and is what the setting's type says anywhere else."""

import json
from dataclasses import fields
from typing import Any, Literal, get_args, get_type_hints

import pytest

from pipeline.commands.compare import ComparisonSettings
from pipeline.components import SLOTS, Node, conform, structure
from pipeline.measuring.card_networks import CardSettings
from pipeline.published import parse_options
from pipeline.recipes.describing import sections_of
from pipeline.recipes.files import merge, parse_settings
from pipeline.recipes.schema import Recipe, load, settings
from pipeline.sampling.from_folder import FolderSettings
from pipeline.written import Written

TEXTS = ("001", "no", "2024", "@home", "my #1", "[a] b", "{x", "~", "1e5", "0x10", "a: b", "2024-01-31", "null x", "'q")
PATHS = [f"/pictures/{text}" for text in TEXTS] + ["[draft]", "{draft}", "null", "off", "12:30:00"]


@pytest.mark.parametrize("text", PATHS)
def test_a_text_of_a_component_and_of_a_section_is_kept(text):
    recipe = load("image_folder", [f"data.source.path={text}", f"publish.license={text}", f"evaluate.reference={text}"])
    assert recipe.data.source == {"kind": "image_folder", "path": text}
    assert recipe.publish.license == recipe.evaluate.reference == text


@pytest.mark.parametrize("name", ["001", "no", "2024", "@home", "my #1", "[a]", "~", "null x", "été"])
def test_a_run_keeps_its_name_and_comes_back_from_its_file(name, tmp_path):
    recipe = load("digits", [f"name={name}", f"tokenizer.start={name}"])
    assert recipe.name == recipe.tokenizer.start == name
    (tmp_path / "recipe.yaml").write_text(settings(recipe))
    assert load(str(tmp_path / "recipe.yaml")) == recipe


def test_texts_inside_of_lists_and_mappings_are_typed_one_by_one():
    given = ["evaluate.features=[001, no, 'a, b']", "data.source={kind: image_folder, path: 007, held_out: 1e-1}"]
    recipe = load("image_folder", given)
    assert recipe.evaluate.features == ("001", "no", "a, b")
    assert recipe.data.source == {"kind": "image_folder", "path": "007", "held_out": 0.1}
    nested = load("digits", ["tokenizer.model.bottleneck={kind: vector_quantize, vocab: 016, dim: 4}"])
    assert nested.tokenizer.model["bottleneck"] == {"kind": "vector_quantize", "vocab": 16, "dim": 4}
    adversary = load("image_folder", ["tokenizer.phases.main.adversary.loss={kind: hinge}"]).tokenizer.phases["main"]
    assert adversary.adversary.loss == {"kind": "hinge"}


def test_the_command_line_and_a_file_make_the_same_recipe(tmp_path):
    lines = ["tokenizer.model.multipliers=[1, 2]", "tokenizer.model.middle_attention=no", "data.flip=yes", "seed=010"]
    text = "include: digits\ntokenizer: {model: {multipliers: [1, 2], middle_attention: false}}\ndata: {flip: true}\n"
    (tmp_path / "same.yaml").write_text(text + "seed: 10\n")
    assert load("digits", lines) == load(str(tmp_path / "same.yaml"))


@pytest.mark.parametrize(
    "text, hint, value",
    [
        ("010", int, 10),
        ("1_000", int, 1000),
        ("2e3", int, 2000),
        ("1e-5", float, 1e-5),
        (".5", float, 0.5),
        ("no", bool, False),
        ("no", Literal["no", "yes"], "no"),
        ("2", Literal[1, 2], 2),
        ("224", int | Literal["grid"] | None, 224),
        ("grid", int | Literal["grid"] | None, "grid"),
        ("false", bool | Literal["head"], False),
        ("null", str | None, None),
        ("~", str | None, "~"),
        ("~", int | None, None),
        ("3", int | str | list[int | str], "3"),
        ("[3, 07]", int | str | list[int | str], ["3", "07"]),
        ("{a: 1, b: [x, 2]}", Any, {"a": 1, "b": ["x", 2]}),
        ("{}", dict[str, float], {}),
        ("[0.5,1]", tuple[float, float], (0.5, 1.0)),
    ],
)
def test_the_type_decides(text, hint, value):
    found = conform(Written(text), hint, "here")
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "text, hint, message",
    [
        ("{network:1e-5}", dict[str, float], "here: 'network:1e-5' has no value; write {network: 1e-5}"),
        ("{network: }", dict[str, float], "here: 'network' has no value"),
        ("{a: 1", dict[str, float], "here: '{a: 1' cannot be read"),
        ("[1,2] # two", list[int], "'# two' follows its end|follows its end"),
        ("5 # five", int, "'5 # five' is not a whole number"),
        ("[!!python/object:os.system a]", list[str], "no meaning here"),
        ("lots", int, "here: 'lots' is not a whole number"),
        ("off", Literal["a", "b"], "here: 'off' is not one of a, b"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_place(text, hint, message):
    with pytest.raises(ValueError, match=message) as error:
        conform(Written(text), hint, "here")
    assert "\n" not in str(error.value)


def test_nothing_unknown_is_left_out_in_silence(tmp_path):
    for given in ("generator.loop.lr={network:1e-5}", "generator.loop.lr.netwrok=null", "generator.losses.typo=null"):
        with pytest.raises(ValueError, match="has no value|is empty, and there is none to leave out"):
            load("digits", [given])
    (tmp_path / "colon.yaml").write_text("include: digits\ngenerator: {loop: {lr: {network:1e-5}}}\n")
    with pytest.raises(ValueError, match="generator.loop.lr.network:1e-5 is empty.*with a space: network: 1e-5"):
        load(str(tmp_path / "colon.yaml"))
    for given in ("generator.loop.lr={network: 1e-3, critic: null}", "tokenizer.phases.main.weights.adversarial=null"):
        load("digits", [given])  # a name that recipes know may be left out where it is not
    phase = load("digits", ["tokenizer.phases.main.losses.perceptual=null"]).tokenizer.phases["main"]
    assert "perceptual" not in phase.losses and phase.losses


def test_kind_and_arguments_come_in_any_order():
    kind, path, held_out = "data.source.kind=hub", "data.source.path=/x", "data.source.take=010"
    recipes = [load("image_folder", order) for order in ([kind, path, held_out], [held_out, path, kind])]
    assert recipes[0] == recipes[1] and recipes[0].data.source == {"kind": "hub", "path": "/x", "take": 10}


def test_every_command_keeps_texts(tmp_path):
    card = structure(
        CardSettings, parse_settings(["data.source.kind=image_folder", "data.source.path=1", "data.size=016"])
    )
    assert card.data.source["path"] == "1" and card.data.size == 16
    assert structure(ComparisonSettings, parse_settings(["out=2024", "by=null"])) == ComparisonSettings("2024", None)
    sample = structure(FolderSettings, parse_settings(["labels=010", "out=007", "guidance={scale: 2}", "variant=no"]))
    assert (sample.labels, sample.out, sample.guidance, sample.variant) == ("010", "007", {"scale": 2}, "no")

    def convert(state: dict, start: str = "", tokens: int = 1) -> None: ...

    assert parse_options("any", convert, ["start=001", "tokens=001"]) == {"start": "001", "tokens": 1}


def test_a_later_setting_is_over_an_earlier_one_and_over_a_file():
    values = merge({"a": {"kind": "x", "n": 1}, "b": {"c": 1}}, parse_settings(["b={c: 2}", "b.d=3", "a.n=4", "a.n=5"]))
    assert values["a"] == {"kind": "x", "n": Written("5")} and values["b"] == {"c": Written("2"), "d": Written("3")}


@pytest.mark.parametrize("value", ["${oc.env:HOME}", "/x/${data.size}", "[${oc.env:USER}]", "${oc.decode:1}"])
def test_values_from_elsewhere_are_refused_and_not_shown(value, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    with pytest.raises(ValueError, match="publish.license: .* refers to another value") as error:
        load("digits", [f"publish.license={value}"])
    assert "somebody" not in str(error.value)
    (tmp_path / "r.yaml").write_text(f"include: digits\npublish: {{license: '{value}'}}\n")
    with pytest.raises(ValueError, match="publish.license refers to another value") as error:
        load(str(tmp_path / "r.yaml"))
    assert "somebody" not in str(error.value)


@pytest.mark.parametrize("text", ["root:x:0:0", "- a\n- secret", "secret: 1", "a: [secret", "\tsecret", "secret"])
def test_an_included_file_that_is_no_recipe_is_named_and_not_shown(text, tmp_path):
    for name in ("passwd", "other.yaml"):
        (tmp_path / name).write_text(text)
        (tmp_path / "r.yaml").write_text(f"include: [{tmp_path / name}]\nname: x\n")
        with pytest.raises(ValueError, match=name) as error:
            load(str(tmp_path / "r.yaml"))
        assert "secret" not in str(error.value) and "root" not in str(error.value).replace(str(tmp_path), "")
    if ":" not in text:
        with pytest.raises(ValueError, match="other.yaml") as error:
            load(str(tmp_path / "other.yaml"))
        assert "secret" not in str(error.value)


NO_NAMES = [
    "../x",
    "/x",
    "..",
    ".",
    ".x",
    "a/b",
    "a\\b",
    "-x",
    "x.",
    "x ",
    "a\nb",
    "a\0b",
    "n" * 300,
    "é" * 150,
    "NUL",
    "con.x",
    "a:b",
]


@pytest.mark.parametrize("name", ["", *NO_NAMES], ids=ascii)
def test_names_that_leave_runs_are_refused_at_load(name, tmp_path):
    values = {"include": "digits", "name": name}
    (tmp_path / "r.yaml").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="^name: .* no folder's name") as error:
        load(str(tmp_path / "r.yaml"))
    assert "\n" not in str(error.value) and len(str(error.value)) < 200
    if name:
        with pytest.raises(ValueError, match="no folder's name"):
            load("digits", [f"name={name}"])


def test_a_phase_has_a_folder_too():
    phase = "{loop: {steps: 1, lr: {tokenizer: 1}}, weights: {pixel: 1}}"
    with pytest.raises(ValueError, match="tokenizer.phases.*no folder's name"):
        load("digits", [f"tokenizer.phases={{../../x: {phase}}}"])


def test_every_field_of_nodes_says_its_slot():
    records = {Recipe, *(record for _, record in sections_of(Recipe))}
    of_nodes = {}
    for record in records:
        hints = get_type_hints(record)
        named = [f for f in fields(record) if Node in (hints[f.name], *get_args(hints[f.name])) and f.name != "sampler"]
        of_nodes |= {f"{record.__name__}.{f.name}": f.metadata.get("slot") for f in named}
    assert len(of_nodes) == 12 and set(of_nodes.values()) <= set(SLOTS), of_nodes

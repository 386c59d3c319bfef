"""Every file in every slot obeys the rules that recipes and diffusers rely on."""

import inspect

import pytest
from diffusers import ConfigMixin, ModelMixin, SchedulerMixin

from pipeline.components import SLOTS, Arguments, build, check, conform, constructor_parameters, find, kinds
from pipeline.nn.feature_decoder import DECODERS
from pipeline.nn.texture_branch import BRANCHES
from pipeline.recipes.derived import DERIVED
from pipeline.vision.frozen_encoder import ENCODERS

EVERY = [(slot, kind) for slot in SLOTS for kind in kinds(slot) if slot != "teachers"]


@pytest.mark.parametrize("slot, kind", EVERY)
def test_the_file_name_finds_the_class(slot, kind):
    assert find(slot, kind).__module__ == f"pipeline.{slot}.{kind}"


def test_a_saved_folder_tells_by_the_name_of_its_class_which_slot_it_is_of():
    names = [find(slot, kind).__name__ for slot in ("tokenizers", "networks", "text_encoders") for kind in kinds(slot)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("slot, kind", EVERY)
def test_every_argument_is_annotated_and_documented(slot, kind):
    cls = find(slot, kind)
    assert cls.__doc__ and inspect.getmodule(cls).__doc__
    for name, parameter in list(inspect.signature(cls.__init__).parameters.items())[1:]:
        assert parameter.annotation is not parameter.empty, name


@pytest.mark.parametrize("slot, kind", EVERY)
def test_diffusers_can_load_it_again(slot, kind):
    cls = find(slot, kind)
    for base in (ModelMixin, SchedulerMixin):
        if issubclass(cls, base):
            module = inspect.getmodule(cls)
            assert hasattr(module, base.__name__), "diffusers seeks its base in the component's own module"
    if issubclass(cls, ConfigMixin):
        assert hasattr(cls.__init__, "__wrapped__"), "register_to_config is missing"


def test_mistakes_in_a_node_are_one_line_that_says_what_to_change():
    wrong = [
        ({}, "needs a kind"),
        ({"kind": "gausian", "dim": 4}, "did you mean 'gaussian'"),
        ({"kind": "gaussian"}, "dim is missing"),
        ({"kind": "gaussian", "dmi": 4}, "did you mean 'dim'"),
        ({"kind": "gaussian", "dim": "four"}, "not a whole number"),
        ({"kind": "gaussian", "dim": 4.5}, "not a whole number"),
    ]
    for node, message in wrong:
        with pytest.raises(ValueError, match=message) as error:
            check("bottlenecks", node, where="tokenizer.model.bottleneck")
        assert "\n" not in str(error.value) and "tokenizer.model.bottleneck" in str(error.value)
    with pytest.raises(ValueError, match="determined by an earlier stage"):
        check("bottlenecks", {"kind": "gaussian", "dim": 4}, derived=("dim",))


def test_types_conform():
    assert conform(1e3, int, "steps") == 1000 and isinstance(conform(1, float, "rate"), float)
    assert conform([1, 2], tuple[float, float], "betas") == (1.0, 2.0)
    assert conform(None, int | None, "channels") is None
    for value, hint in [(True, int), ("2", int), (1.5, int), ([1], tuple[float, float]), ("a", list[int]), (1, bool)]:
        with pytest.raises(ValueError, match="^here"):
            conform(value, hint, "here")


def test_a_derived_value_that_is_not_taken_is_not_passed():
    assert build("bottlenecks", {"kind": "gaussian", "dim": 4}, num_classes=10).dim == 4


def test_arguments_hold_what_is_given_and_the_constructors_defaults():
    cls, arguments = check("critics", {"kind": "patch", "layers": 2})
    defaults = {"width": 64, "norm": "group", "channels": 3, "pixels": "signed"}
    assert arguments == defaults | {"layers": 2} and arguments.layers == 2
    assert Arguments.from_config(cls(**arguments)) == arguments
    more = arguments | {"layers": 1, "image_size": 16}
    assert (more.layers, more.image_size, arguments.layers) == (1, 16, 2)
    with pytest.raises(AttributeError, match="'image_size' is given or known yet; there are: width, layers"):
        assert arguments.image_size
    with pytest.raises(AttributeError, match="read-only"):
        arguments.layers = 1


@pytest.mark.parametrize("choices", [ENCODERS, BRANCHES, DECODERS], ids=["encoders", "branches", "decoders"])
def test_no_class_method_of_a_choice_restates_a_default(choices):
    for cls in choices.values():
        assert not restated(cls), cls


@pytest.mark.parametrize("slot, kind", EVERY)
def test_no_class_method_restates_a_default(slot, kind):
    assert not restated(find(slot, kind))


def restated(cls: type) -> list[str]:
    """Parameters of our class methods that have a default, and are parameters of the constructor."""
    ours = [name for base in cls.__mro__ if base.__module__.startswith("pipeline.") for name in vars(base)]
    hooks = {n: getattr(cls, n) for n in ours if isinstance(inspect.getattr_static(cls, n), classmethod)}
    return [
        f"{name}: {parameter.name}"
        for name, hook in hooks.items()
        for parameter in inspect.signature(hook).parameters.values()
        if parameter.name in constructor_parameters(cls) and parameter.default is not parameter.empty
    ]


def test_an_argument_that_bears_a_slots_name_and_is_no_node_is_refused_in_one_line():
    node = {"kind": "relational", "teacher": {"kind": "lpips_vgg"}}
    with pytest.raises(ValueError, match="^losses.teacher: {'kind': 'lpips_vgg'} is not a text"):
        check("losses", node, DERIVED["losses"])

"""Every file in every slot obeys the rules that recipes and diffusers rely on."""

import inspect

import pytest
from diffusers import ConfigMixin, ModelMixin, SchedulerMixin

from pipeline.components import SLOTS, build, check, conform, find, kinds

EVERY = [(slot, kind) for slot in SLOTS for kind in kinds(slot) if slot not in ("metrics", "teachers")]


@pytest.mark.parametrize("slot, kind", EVERY)
def test_the_file_name_finds_the_class(slot, kind):
    assert find(slot, kind).__module__ == f"pipeline.{slot}.{kind}"


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

"""Errors name the setting at fault, whole, and rules of values have one wording."""

import pytest

from pipeline.components import conform
from pipeline.validation import at, check_at_least, check_fraction, check_known, check_names, check_positive


def message(error) -> str:
    return str(error.value)


def test_places_are_joined_from_the_outside_in():
    with pytest.raises(ValueError) as error, at("tokenizer.phases.main"), at("losses.pixel"):
        raise ValueError("it compares colours")
    assert message(error) == "tokenizer.phases.main.losses.pixel: it compares colours"
    with pytest.raises(ValueError) as error, at("generator"):
        conform("many", int, "loop.steps")
    assert message(error) == "generator.loop.steps: 'many' is not a whole number"


def test_other_errors_and_results_pass_as_they_are():
    with pytest.raises(KeyError, match="^'name'$"), at("data"):
        raise KeyError("name")
    with at("data"):
        value = 3
    assert value == 3


def test_what_to_type_is_the_whole_name():
    with pytest.raises(ValueError) as error, at("posttrain.phase"), at("weights"):
        check_names(["pixel", "pixle"], ["pixel"], "loss term")
    assert message(error) == (
        "posttrain.phase.weights.pixle: there is no loss term 'pixle'; did you mean 'pixel'?;"
        " posttrain.phase.weights.pixle=null leaves it out"
    )
    needed = "^weights.kl is missing: every loss term needs a value; set weights.kl=VALUE$"
    with pytest.raises(ValueError, match=needed), at("weights"):
        check_names(["pixel"], ["pixel", "kl"], "loss term")
    with pytest.raises(ValueError, match="^there is no part 'decodr'; did you mean 'decoder'"):
        check_known("decodr", ["encoder", "decoder"], "part")


@pytest.mark.parametrize(
    "rule, value, allowed",
    [
        (check_fraction, 1.5, "from 0 to 1"),
        (lambda *given: check_fraction(*given, one=False), 1, "0 or more and below 1"),
        (lambda *given: check_fraction(*given, zero=False), 0, "above 0 and at most 1"),
        (lambda *given: check_fraction(*given, zero=False, one=False), float("nan"), "above 0 and below 1"),
        (check_positive, 0, "give a number above 0"),
        (lambda *given: check_at_least(*given, 1), 0, "give 1 or more"),
    ],
)
def test_a_value_out_of_range_is_told_with_the_range(rule, value, allowed):
    with pytest.raises(ValueError, match=f"^joint.share is {value:g}; .*{allowed}$"), at("joint"):
        rule("share", value)
    rule("share", 0.5) if "1 or more" not in allowed else rule("share", 1)


def test_the_ends_of_a_range_are_in_it():
    check_fraction("share", 0), check_fraction("share", 1), check_at_least("steps", 1, 1)
    check_fraction("share", 1, zero=False), check_fraction("share", 0, one=False)

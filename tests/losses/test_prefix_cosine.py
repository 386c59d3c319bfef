"""ReToK's semantic term: the fewer tokens the decoder was given, the more it counts."""

import pytest
import torch
from golden_kinds.rectok import Given

from pipeline.checks.recipe import check_recipe
from pipeline.code import Code
from pipeline.losses.prefix_cosine import PrefixCosine
from pipeline.nn.feature_head import HeadShape
from pipeline.recipes.schema import load
from pipeline.teachers.base import Tap
from pipeline.tokenizers.base import TokenizerOutput
from pipeline.validation import SettingError


def loss(least: int = 2, full: int = 6) -> PrefixCosine:
    torch.manual_seed(0)
    tap = Tap(Given(torch.randn(3, 4, 5)))
    return PrefixCosine(tap, 8, [2, 2], "decoder.blocks.0", least, full, head=HeadShape(layers=1))


def output(of: PrefixCosine, kept: int | None) -> TokenizerOutput:
    heads = {"prefix_cosine": of.head(torch.linspace(-1, 1, 96).sin().reshape(3, 4, 8))}
    read = None if kept is None else torch.zeros(3, kept, 4)
    return TokenizerOutput(None, Code(z=torch.zeros(3, 6, 4)), {}, decoder_input=read, head_outputs=heads)


def value(of: PrefixCosine, kept: int | None) -> float:
    return of(torch.zeros(3, 3, 4, 4), output(of, kept))["prefix_cosine"].item()


def test_the_term_falls_in_a_line_from_the_fewest_tokens_to_the_whole_code():
    of = loss()
    whole = value(of, 2)
    assert whole > 0.1
    for kept, share in {1: 1.0, 2: 1.0, 3: 0.75, 4: 0.5, 5: 0.25, 6: 0.0, 9: 0.0}.items():
        assert value(of, kept) == pytest.approx(share * whole)
    assert value(of, None) == 0.0  # no token is dropped
    assert of.metrics["cosine_given"].item() == pytest.approx(1 - whole)


def test_lengths_in_the_wrong_order_are_refused():
    with pytest.raises(SettingError, match="least is 6, and full is 6; give fewer tokens than that"):
        loss(6, 6)


@pytest.mark.parametrize(
    "change", ["null", "{kind: prefix_drop, action: mask}", "{kind: codebook_neighbours, strength: 4}"]
)
def test_a_phase_that_cuts_no_codes_off_is_refused(change):
    """The share would be 0 at every step."""
    check_recipe(load("digits_retok"))
    recipe = load(
        "digits_retok", ["tokenizer.phases.main.perturbation=null", f"tokenizer.phases.main.perturbation={change}"]
    )
    with pytest.raises(ValueError, match=r"^tokenizer\.phases\.main\.losses\.semantic: PrefixCosine weighs by"):
        check_recipe(recipe)

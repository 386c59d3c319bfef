"""Numbers that are not finite never become an image: one line names the image and its seed."""

import pytest
import torch
from accelerate import Accelerator
from support.tiny_pipeline import generators, make_pipeline
from torch import nn

from pipeline.code import Condition, LatentSpec
from pipeline.draws import ImageDraws
from pipeline.images.stored_pixels import to_pixels
from pipeline.networks.bidirectional_transformer import BidirectionalTransformer
from pipeline.networks.causal_transformer import CausalTransformer
from pipeline.nn.embeddings import LabelEmbedding
from pipeline.nn.finite import NotFinite, check_finite
from pipeline.objectives.masked_token import MaskedToken
from pipeline.objectives.next_token import NextToken
from pipeline.samplers.guidance import Guidance
from pipeline.samplers.request import SamplingRequest
from pipeline.sampling.many_images import Plan, sample_images


def spoil_label(network: nn.Module, label: int) -> None:
    """Make everything that the network computes of one class NaN."""
    embedding = next(module for module in network.modules() if isinstance(module, LabelEmbedding))
    next(embedding.parameters()).data[label] = float("nan")


def test_the_message_names_a_few_images():
    values = torch.zeros(7, 2)
    check_finite(values, "the code")
    values[[1, 2, 4, 6], 1] = torch.tensor([torch.nan, torch.inf, -torch.inf, torch.nan])
    with pytest.raises(NotFinite) as caught:
        check_finite(values, "the code")
    assert caught.value.rows == [1, 2, 4, 6]
    assert str(caught.value).startswith("the code of image 1, image 2, image 4 and 1 more holds")
    named = caught.value.of_images(seeds=range(10, 17)).of_images(numbers=range(100, 107))
    assert str(named).startswith("the code of image 101 (seed 11), image 102 (seed 12), image 104 (seed 14) and 1 more")


def test_a_code_that_is_not_finite_is_named_by_its_seed():
    pipe = make_pipeline()
    spoil_label(pipe.network, 2)
    with pytest.raises(NotFinite, match=r"the sampled code of image 1 \(seed 8\) holds"):
        pipe([0, 2, 3], generator=generators(5, 8, 9))
    assert len(pipe([0, 3], generator=generators(5, 9)).images) == 2  # the others are well


def test_a_decoded_image_that_is_not_finite_is_named():
    pipe = make_pipeline()
    next(pipe.tokenizer.decoder.parameters()).data.fill_(torch.inf)
    assert pipe([0], generator=generators(5), output_type="latent").images.isfinite().all()
    with pytest.raises(NotFinite, match=r"the decoded image of image 0 \(seed 5\)"):
        pipe([0], generator=generators(5))


def test_many_images_name_the_number_of_the_file(tmp_path):
    pipe = make_pipeline()
    spoil_label(pipe.network, 2)
    plan = Plan([0, 1, 3, 1, 2, 0], [20, 21, 22, 23, 24, 25], 3, "fp32", {})
    with pytest.raises(NotFinite, match=r"image 4 \(seed 24\)"):
        sample_images(pipe, plan, tmp_path / "out", Accelerator(cpu=True))
    assert sorted(file.name for file in (tmp_path / "out").glob("*.png")) == [f"{i:06d}.png" for i in range(3)]


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize(
    "network, objective", [(CausalTransformer, NextToken), (BidirectionalTransformer, MaskedToken)]
)
def test_ids_are_not_chosen_by_logits_that_are_not_finite(network, objective, guidance):
    torch.manual_seed(0)
    model = network(grid=[2, 2], vocab=8, num_classes=4, depth=1, width=16, heads=2).eval()
    spoil_label(model, 2)
    request = SamplingRequest(
        model,
        Condition(labels=torch.tensor([0, 2])),
        LatentSpec((2, 2), 4, vocab=8),
        ImageDraws.from_seeds([1, 2]),
        objective().default_steps(LatentSpec((2, 2), 4, vocab=8)),
        Guidance(guidance),
    )
    with pytest.raises(NotFinite, match="of image 1 holds"):
        objective().sample(request)


def test_pixels_that_are_not_finite_are_not_written():
    images = torch.zeros(2, 3, 4, 4)
    images[1, 0, 0, 0] = torch.nan
    with pytest.raises(NotFinite, match="image 1"):
        to_pixels(images)

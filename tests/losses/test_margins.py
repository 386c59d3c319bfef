"""ResTok's losses: cosines of places, and of a mean with a class token, count up to a margin and no further."""

import pytest
import torch
import torch.nn.functional as F
from golden_kinds.rectok import Given
from golden_kinds.restok_tokenizer import GivenClass
from torch import Tensor

from pipeline.code import Code
from pipeline.losses.class_margin import ClassMargin
from pipeline.losses.feature_margin import FeatureMargin
from pipeline.teachers.base import Tap
from pipeline.tokenizers.base import TokenizerOutput

TOKENS = torch.linspace(-1, 1, 96).sin().reshape(3, 4, 8)


def value(loss: FeatureMargin | ClassMargin, projected: Tensor) -> Tensor:
    output = TokenizerOutput(None, Code(z=TOKENS), {}, head_outputs={loss.terms[0]: projected})
    return loss(torch.zeros(3, 3, 4, 4), output)[loss.terms[0]]


def test_every_place_counts_by_what_its_cosine_lacks():
    torch.manual_seed(0)
    features = torch.randn(3, 4, 5)
    loss = FeatureMargin(Tap(Given(features)), 8, [2, 2], "decoder.feature_map", margin=0.4)
    projected = loss.head(TOKENS)
    cosine = F.cosine_similarity(projected, features, dim=-1)
    torch.testing.assert_close(value(loss, projected), (0.6 - cosine).clamp(min=0).mean())
    torch.testing.assert_close(loss.metrics["margin_cosine_given"], cosine.mean())
    assert value(loss, features * 3) == 0.0
    assert loss.head.layers[0].bias is None


def test_the_mean_of_tokens_is_compared_with_the_class_token():
    torch.manual_seed(0)
    token = torch.randn(3, 5)
    loss = ClassMargin(GivenClass(token), 8, [1, 1], "encoder.summary")
    projected = loss.head(TOKENS)
    cosine = F.cosine_similarity(projected.mean(dim=1), token, dim=-1)
    torch.testing.assert_close(value(loss, projected), (0.75 - cosine).clamp(min=0).mean())
    noise = torch.randn(3, 4, 5)
    centred = token[:, None] + 0.1 * (noise - noise.mean(dim=1, keepdim=True))
    assert value(loss, centred) == pytest.approx(0.0), "the mean is within the margin"
    assert loss.metrics["class_cosine_given"] == pytest.approx(1.0)

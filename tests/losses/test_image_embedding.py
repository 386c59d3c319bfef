"""The loss of the embedding that a tokenizer predicts: its value, and which tokenizers and teachers it takes."""

import pytest
import torch

from pipeline.code import Code
from pipeline.components import check
from pipeline.losses.image_embedding import ImageEmbedding
from pipeline.tokenizers.base import TokenizerOutput


class Teacher(torch.nn.Module):
    """The mean colour of an image."""

    name, dim = "colour", 3

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(2, 3))


def test_it_is_the_squared_error_of_the_embedding():
    images, predicted = torch.rand(4, 3, 8, 8), torch.rand(4, 3, requires_grad=True)
    loss = ImageEmbedding(Teacher())
    value = loss(images, TokenizerOutput(None, Code(), {}, {"image_embedding": predicted}))["image_embedding"]
    torch.testing.assert_close(value, (predicted - images.mean(dim=(2, 3))).square().mean())
    value.backward()
    assert predicted.grad.abs().sum() > 0
    assert loss.metrics["embedding_cosine_colour"] <= 1


def test_a_tokenizer_that_predicts_none_and_a_teacher_of_other_width_are_refused():
    loss = ImageEmbedding(Teacher())
    node = {
        "kind": "titok",
        "bottleneck": {"kind": "gaussian", "dim": 4},
        "tokens": 4,
        "width": 8,
        "depth": 1,
        "heads": 1,
    }
    titok, arguments = check("tokenizers", node, ("image_size",))
    with pytest.raises(ValueError, match="a TiTok predicts no embedding"):
        loss.check(titok, arguments)
    with pytest.raises(ValueError, match="but the tokenizer predicts 7; set its embedding_width=3"):
        ImageEmbedding.check_width("colour", 3, 7)

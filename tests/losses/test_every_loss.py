"""What every loss promises: the terms it declares, gradients, and values that are means over the images of a batch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.code import Code
from pipeline.components import Arguments, build, find, kinds
from pipeline.frozen.class_targets import ClassTarget
from pipeline.losses.base import Loss
from pipeline.teachers.base import Tap
from pipeline.teachers.classifier import Classifier
from pipeline.tokenizers.base import TokenizerOutput
from pipeline.tokenizers.conv_autoencoder import ConvAutoencoder

FEATURES = ("image_embedding", "foundation", "rebuilt_foundation", "rebuilt_semantic")
GRID, DIM, IMAGES, VOCAB = [4, 4], 4, 6, 16
ARGUMENTS: dict[str, dict[str, Any]] = {  # what a kind cannot be built without
    "feature_cosine": {"head": {"layers": 1}},
    "prefix_cosine": {"at": "decoder.blocks.0", "least": 4, "full": 32, "head": {"layers": 1}},
    "feature_margin": {"at": "decoder.feature_map"},
    "class_margin": {"at": "encoder.summary"},
    "branch_contrast": {"heads": 2},
    "middle_branch_contrast": {"heads": 2},
}


def classifier() -> Classifier:
    torch.manual_seed(3)
    return Classifier(num_classes=3, width=8, dim=DIM).eval()


EXTRACTORS = {  # of each file of pipeline/frozen/ that a loss declares
    "class_features": classifier,
    "class_targets": lambda: ClassTarget(classifier()),
    "feature_maps": lambda: Tap(classifier(), 1),
    "image_embedding": classifier,
    "image_logits": classifier,
    "perceptual_backbone": classifier,
    None: lambda: None,
}


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A frozen tokenizer of one id at each of 4x4 places."""
    folder = tmp_path_factory.mktemp("proxy") / "tokenizer"
    neck = {"kind": "vector_quantize", "dim": DIM, "vocab": VOCAB}
    ConvAutoencoder(16, neck, width=8, multipliers=[1, 1, 1], blocks=1, groups=4).save_pretrained(folder)
    return folder


def loss_of(kind: str, proxy: Path) -> Loss:
    cls = find("losses", kind)
    node = {"kind": kind} | ARGUMENTS.get(kind, {}) | ({"path": str(proxy)} if kind == "proxy_codes" else {})
    torch.manual_seed(4)
    extractor = EXTRACTORS[cls.extractor_kind]()
    return build("losses", node, extractor=extractor, dim=DIM, grid=GRID)


def images() -> Tensor:
    return torch.rand(IMAGES, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def outputs_of(loss: Loss) -> TokenizerOutput:
    """What a tokenizer makes of `images`, with all that losses read of it."""
    generator = torch.Generator().manual_seed(2)

    def random(*shape: int) -> Tensor:
        return torch.randn(IMAGES, *shape, generator=generator).requires_grad_()

    z = random(16, DIM)
    made = (images() + 0.2 * random(3, 16, 16)).detach().requires_grad_()
    features = {"kept": torch.rand(IMAGES, 16, generator=generator) < 0.5, "proxy_logits": random(16, VOCAB)}
    features["scales"] = [random(3, 4, 4), random(3, 8, 8)]
    features["image_embedding"] = random(DIM)
    features["rebuilt_semantic"] = random(8, 4, 4)
    features |= {"rebuilt_foundation": random(16, DIM), "foundation": random(16, DIM).detach()}
    rebuilt = TokenizerOutput(made, Code(z=z), {}, features=features)
    of_module = loss.attachment is not None and loss.attachment.module is not None
    read = (z,) if of_module else (z, None, features, None)
    heads = {} if loss.head is None else {loss.terms[0]: loss.head(*read)}
    return replace(rebuilt, class_features=random(DIM), head_outputs=heads)


def rows(rebuilt: TokenizerOutput, part: slice) -> TokenizerOutput:
    """The outputs of some of the images."""
    return replace(
        rebuilt,
        images=rebuilt.images[part],
        code=rebuilt.code[part],
        features={
            name: [one[part] for one in value] if isinstance(value, list) else value[part]
            for name, value in rebuilt.features.items()
        },
        class_features=rebuilt.class_features[part],
        head_outputs={name: value[part] for name, value in rebuilt.head_outputs.items()},
    )


@pytest.mark.parametrize("kind", kinds("losses"))
def test_a_loss_gives_its_terms_with_gradients(kind, proxy):
    loss = loss_of(kind, proxy)
    rebuilt = outputs_of(loss)
    terms = loss(images(), rebuilt)
    assert tuple(terms) == loss.terms
    assert all(value.ndim == 0 and value.isfinite() and value.requires_grad for value in terms.values())
    sum(terms.values()).backward()
    leaves = {"images": rebuilt.images, "code": rebuilt.code.z, "proxy_logits": rebuilt.features["proxy_logits"]}
    leaves |= {"scales": rebuilt.features["scales"][0]}
    leaves |= {name: rebuilt.features[name] for name in FEATURES}
    reached = [name for name, leaf in leaves.items() if leaf.grad is not None and leaf.grad.abs().sum() > 0]
    read = [name for name in loss.reads if leaves[name].requires_grad]  # a target has no gradient
    assert reached == (["images"] if loss.of_pixels else read or ["code"])
    extractor = getattr(loss, "extractor", None) or getattr(loss, "tap", None)
    frozen = extractor.parameters() if isinstance(extractor, nn.Module) else ()
    assert all(parameter.grad is None for parameter in frozen)


@pytest.mark.parametrize("kind", kinds("losses"))
def test_a_loss_is_a_mean_over_images_or_says_what_is_not(kind, proxy):
    loss = loss_of(kind, proxy)
    rebuilt = outputs_of(loss)
    with torch.no_grad():
        whole = loss(images(), rebuilt)
        halves = [loss(images()[part], rows(rebuilt, part)) for part in (slice(0, 3), slice(3, 6))]
    mean = {name: (halves[0][name] + halves[1][name]) / 2 for name in whole}
    alike = all(torch.isclose(whole[name], mean[name], atol=1e-6, rtol=1e-5) for name in whole)
    arguments = Arguments.complete(type(loss), ARGUMENTS.get(kind, {}))
    assert alike == (not loss.batch_statistics(arguments))


def test_what_feature_cosine_computes_over_a_batch_is_said():
    cls = find("losses", "feature_cosine")
    plain = Arguments.complete(cls, {"head": {"layers": 1}})
    assert cls.batch_statistics(plain) == ()
    assert len(cls.batch_statistics(plain | {"standardize": True, "positions": "dropped"})) == 2

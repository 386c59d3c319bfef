"""Semantic regularisation: the loss, the projection that code and teacher share, and the processes of a training."""

import pytest
import torch
from support.two_processes import as_two
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.code import Code
from pipeline.components import Arguments, find
from pipeline.draws import StepDraws
from pipeline.images.reading import ImageBatch
from pipeline.losses.class_contrast import ClassContrast
from pipeline.losses.pixel import Pixel
from pipeline.recipes.loops import Loop
from pipeline.recipes.tokenizer_training import Phase
from pipeline.teachers.classifier import Classifier
from pipeline.tokenizers.base import TokenizerOutput
from pipeline.tokenizers.conv_autoencoder import ConvAutoencoder
from pipeline.training.reconstruction import Reconstruction

VQ = {"kind": "vector_quantize", "dim": 4, "vocab": 16}
NECKS = {"ids": VQ, "continuous": {"kind": "gaussian", "dim": 4}}
WIDTH = 12  # of the features that the tokenizer of these tests projects
SHAPES = {
    "conv_autoencoder": {"width": 8, "multipliers": [1, 2], "blocks": 1},
    "conv_autoencoder_wider": {"width": 8, "multipliers": [1, 2], "blocks": 1, "z_channels": 6},
    "maskgit_vqgan": {"width": 8, "multipliers": [1, 2], "blocks": 1, "groups": 4},
    "latent_vit": {"width": 8, "depth": 1, "heads": 2, "patch_size": 8},
    "titok": {"tokens": 3, "width": 8, "depth": 1, "heads": 2, "patch_size": 8},
}


def classifier(dim: int = WIDTH) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Classifier(num_classes=3, width=8, dim=dim).eval()


def tokenizer_of(neck: str = "ids") -> ConvAutoencoder:
    inner = WIDTH if neck == "ids" else WIDTH // 2  # a Gaussian's encoder makes two values of each
    torch.manual_seed(1)
    return ConvAutoencoder(16, NECKS[neck], width=8, multipliers=[1, 2], blocks=1, z_channels=inner)


def images(count: int = 4) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1


def pass_of(tokenizer: ConvAutoencoder, loss: ClassContrast) -> TokenizerOutput:
    return tokenizer(images(), None, StepDraws(0, 0, slice(0, 4), 4), **loss.forward_arguments(images()))


def task_of(neck: str = "ids") -> Reconstruction:
    tokenizer = tokenizer_of(neck)
    losses = {"pixel": {"kind": "pixel"}, "semantic": {"kind": "class_contrast"}}
    weights = {name: 0.3 for name in ("pixel", "class_contrast", *tokenizer.terms(Arguments.from_config(tokenizer)))}
    phase = Phase(Loop(1, {"tokenizer": 1e-3}), weights, losses)
    return Reconstruction(tokenizer, phase, {"pixel": Pixel(), "semantic": ClassContrast(classifier())})


def test_it_is_the_symmetric_cross_entropy_of_all_pairs():
    z, aims = torch.randn(5, 3, 4), torch.randn(5, 4)
    for normalize, scale in ((False, 1.0), (False, 0.7), (True, 5.0)):
        loss = ClassContrast(classifier(), normalize=normalize, scale=scale)
        s, t = z.mean(1), aims
        if normalize:
            s, t = s / s.norm(dim=1, keepdim=True), t / t.norm(dim=1, keepdim=True)
        logits = torch.tensor([[scale * float(a @ b) for b in t] for a in s])
        own = logits.diagonal()
        expected = ((logits.logsumexp(1) - own).mean() + (logits.logsumexp(0) - own).mean()) / 2
        found = loss(images(5), TokenizerOutput(None, Code(z), {}, class_features=aims))
        torch.testing.assert_close(found["class_contrast"], expected)
        both = (F.cross_entropy(logits, torch.arange(5)) + F.cross_entropy(logits.T, torch.arange(5))) / 2
        torch.testing.assert_close(found["class_contrast"], both)
        share = sum(int(row.argmax()) == i for i, row in enumerate(logits)) / 5
        assert loss.metrics["class_match_classifier"] == pytest.approx(share)
    with pytest.raises(ValueError, match="scale is 0"):
        ClassContrast(classifier(), scale=0.0)


def test_codes_that_agree_with_their_teacher_cost_less():
    aims = F.normalize(torch.randn(6, 8), dim=1)
    loss = ClassContrast(classifier(), scale=20.0)
    values = [
        loss(images(6), TokenizerOutput(None, Code(z[:, None]), {}, class_features=aims))["class_contrast"]
        for z in (aims, aims.roll(1, dims=0))
    ]
    assert values[0] < 0.1 < values[1]


@pytest.mark.parametrize("neck", NECKS)
def test_the_shared_projection_learns_from_both_sides(neck):
    tokenizer, loss = tokenizer_of(neck), ClassContrast(classifier())
    weight = tokenizer.quant_conv.weight
    rebuilt = pass_of(tokenizer, loss)
    assert rebuilt.class_features.shape == (4, 4) == rebuilt.code.z.mean(1).shape
    by_hand = F.linear(loss.extractor.features(images()), weight[:, :, 0, 0], tokenizer.quant_conv.bias)
    torch.testing.assert_close(rebuilt.class_features, by_hand[:, :4])  # of mean and log variance, the mean

    def gradient(z: Tensor, projected: Tensor) -> Tensor:
        value = loss(images(), TokenizerOutput(None, Code(z), {}, class_features=projected))["class_contrast"]
        return torch.autograd.grad(value, weight, retain_graph=True)[0]

    z, projected = rebuilt.code.z, rebuilt.class_features
    whole, student, teacher = gradient(z, projected), gradient(z, projected.detach()), gradient(z.detach(), projected)
    assert student.abs().sum() > 0 and teacher.abs().sum() > 0
    torch.testing.assert_close(whole, student + teacher)


def test_the_code_is_seen_before_it_is_perturbed():
    tokenizer, loss = tokenizer_of(), ClassContrast(classifier())
    clean = loss(images(), pass_of(tokenizer, loss))["class_contrast"]
    shown = tokenizer(
        images(), None, None, lambda neck, h, code: torch.zeros_like(code.z), **loss.forward_arguments(images())
    )
    assert torch.equal(loss(images(), shown)["class_contrast"], clean)


def test_the_teacher_stays_frozen_and_in_evaluation_mode():
    task = task_of()
    loss = task.losses["semantic"].train()
    assert loss.training and not any(module.training for module in loss.extractor.modules())
    for _, terms in task.turns(ImageBatch(images()), StepDraws(0, 0, slice(0, 4), 4), 0):
        sum(terms.values()).backward()
    assert all(p.grad is None and not p.requires_grad for p in loss.parameters())
    assert "class_match_classifier" in task.metrics


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("neck", NECKS)
def test_every_tokenizer_knows_the_width_that_it_projects(name, neck):
    cls = find("tokenizers", name.removesuffix("_wider"))
    tokenizer = cls(image_size=16, bottleneck=NECKS[neck], **SHAPES[name])
    width = tokenizer.can.projection_width
    rebuilt = tokenizer(images(2), class_features=torch.randn(2, width))
    assert rebuilt.class_features.shape == (2, 4) and tokenizer(images(2)).class_features is None


def test_a_teacher_of_another_width_and_a_tokenizer_without_a_projection_are_refused():
    phase = Phase(Loop(1, {"tokenizer": 1e-3}), {"class_contrast": 1.0, "pixel": 1.0, "vq": 1.0, "commit": 1.0})
    phase.losses = {"pixel": {"kind": "pixel"}, "semantic": {"kind": "class_contrast"}}
    losses = {"pixel": Pixel(), "semantic": ClassContrast(classifier(5))}
    with pytest.raises(
        ValueError, match="of classifier has 5 channels, but the tokenizer projects 12; give its encoder 5"
    ):
        Reconstruction(tokenizer_of(), phase, losses)
    titok = find("tokenizers", "titok")(image_size=16, bottleneck=VQ, **SHAPES["titok"], interleaved=True)
    with pytest.raises(ValueError, match="this TiTok has none"):
        Reconstruction(titok, phase, losses)


def train_on_half(rank: int) -> list[Reconstruction]:
    """One batch of each kind of code as process `rank` of two."""
    tasks, rows = [task_of(neck) for neck in NECKS], slice(2 * rank, 2 * rank + 2)
    for task in tasks:
        task.players["tokenizer"] = nn.parallel.DistributedDataParallel(task.players["tokenizer"])
        for _, terms in task.turns(ImageBatch(images()[rows]), StepDraws(0, 0, rows, 4), 0):
            sum(terms.values()).backward()
    return tasks


def test_two_processes_train_as_one(tmp_path):
    for neck, half in zip(NECKS, as_two(train_on_half, tmp_path), strict=True):
        alone = task_of(neck)
        for _, terms in alone.turns(ImageBatch(images()), StepDraws(0, 0, slice(0, 4), 4), 0):
            sum(terms.values()).backward()
        assert half.metrics["class_match_classifier"] == alone.metrics["class_match_classifier"]
        ours, theirs = half.players["tokenizer"].module, alone.players["tokenizer"]
        for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, atol=1e-6, rtol=1e-4, msg=f"{neck}: {name}")


def test_it_reads_the_code_before_a_perturbation_or_after():
    z, changed, aims = torch.randn(5, 3, 4), torch.randn(5, 3, 4), torch.randn(5, 4)
    rebuilt = TokenizerOutput(None, Code(z), {}, class_features=aims, decoder_input=changed)
    clean, perturbed = ClassContrast(classifier()), ClassContrast(classifier(), source="perturbed")
    alone = ClassContrast(classifier())(images(5), TokenizerOutput(None, Code(changed), {}, class_features=aims))
    assert torch.equal(perturbed(images(5), rebuilt)["class_contrast"], alone["class_contrast"])
    assert not torch.equal(clean(images(5), rebuilt)["class_contrast"], alone["class_contrast"])

    tokenizer = tokenizer_of()
    draws = StepDraws(0, 0, slice(0, 4), 4)
    rebuilt = tokenizer(images(), None, draws, lambda neck, h, code: code.z + 1)
    assert torch.equal(rebuilt.decoder_input, rebuilt.code.z + 1)
    assert tokenizer(images(), None, draws).decoder_input is None

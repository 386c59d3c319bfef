"""RAE's autoencoder through the import of its whole state; its published form has pixels in [0, 1]."""

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from golden_kinds import Case, bare, grid, sequence
from golden_kinds.robustok import BatchDraws
from pipeline.code import Code
from pipeline.critics.patch import Patch
from pipeline.losses.pixel import Pixel
from pipeline.perturbations.gaussian import Gaussian
from pipeline.published.checkpoint import rename
from pipeline.published.rae import NAMES
from pipeline.recipes.adversary import Adversary
from pipeline.recipes.loops import Loop
from pipeline.recipes.tokenizer_training import Phase
from pipeline.tokenizers.representation import Representation
from pipeline.training.reconstruction import Reconstruction

MATCHES = "stage1.rae.RAE"
EPSILON = 1e-6  # of the adaptive weight


def outputs(case: Case) -> dict[str, Tensor]:
    tokenizer = imported(case)
    images, latents = case.inputs["image"] * 2 - 1, sequence(case.inputs["latents"])
    sides = case.inputs["latents"].shape[2:]
    layers = Recorded(tokenizer)
    with torch.no_grad():
        code = tokenizer.encode(images)
        noised = perturbed(case, tokenizer, images)
        values = {
            "encoder_features": sequence(tokenizer.encode_map(images)),
            "encoded": grid(code.z, *sides),
            "decoded": unit(tokenizer.decode(code)),
            "decoded_latents": unit(tokenizer.decode(Code(z=latents))),
            "encoded_noised": grid(tokenizer.normalize(noised), *sides),
            "decoded_noised": unit(tokenizer.render(noised)),
        }
        tokenizer.decoder(case.inputs["latents"])
        values |= {"decoder_logits": layers.pixels, "decoder_hidden_0": layers.hidden}
        values["decoded_coarse_tokens"] = of_another_grid(case)
    return values | adaptive_weight(case, tokenizer, images)


def imported(case: Case, **options: object) -> Representation:
    stated = case.meta["constructor"]
    with tempfile.TemporaryDirectory() as folder:
        known = {"mean": case.inputs["latent_mean"], "var": case.inputs["latent_var"]}
        torch.save(known, stats := Path(folder) / "stat.pt")
        options = {"encoder_input_size": stated["encoder_input_size"], "stats": str(stats)} | options
        return bare(
            case.imported(
                "rae",
                heads=stated["decoder"]["decoder_num_attention_heads"],
                encoder_heads=stated["encoder"]["num_attention_heads"],
                colours=[stated["colours"][name] for name in ("image_mean", "image_std")],
                **options,
            )["tokenizer"]
        )


class Recorded:
    """What the decoder's first block reads and its last layer gives, of the last pass."""

    def __init__(self, tokenizer: Representation):
        self.hidden = self.pixels = torch.empty(0)
        tokenizer.decoder.blocks[0].register_forward_pre_hook(lambda layer, inputs: self._keep(hidden=inputs[0]))
        tokenizer.decoder.pixels.register_forward_hook(lambda layer, inputs, output: self._keep(pixels=output))

    def _keep(self, **values: Tensor) -> None:
        self.__dict__ |= values


def of_another_grid(case: Case) -> Tensor:
    """The last layer's outputs for fewer tokens than the decoder has: of an encoder that reads smaller images."""
    stated, coarse = case.meta["constructor"], case.inputs["coarse_latents"]
    size = coarse.shape[2] * stated["encoder"]["patch_size"]
    tokenizer = imported(case, encoder_input_size=size, stats=None)
    layers = Recorded(tokenizer)
    tokenizer.decoder(coarse)
    return layers.pixels


def perturbed(case: Case, tokenizer: Representation, images: Tensor) -> Tensor:
    h = tokenizer.features(images)
    code, _ = tokenizer.neck(h)
    given = {"perturbation.level": case.inputs["noise_0"], "perturbation.noise": case.inputs["noise_1"]}
    draws = BatchDraws(given, len(images))
    return Gaussian(case.meta["constructor"]["noise_tau"])(tokenizer.neck, h, code, draws, step=0)


def adaptive_weight(case: Case, tokenizer: Representation, images: Tensor) -> dict[str, Tensor]:
    """The adaptive weight of training, whose pixel term of images in [-1, 1] has half the weight."""
    target = case.inputs["target"]
    adversary = Adversary({"kind": "patch"}, epsilon=EPSILON)
    weights = {"pixel": 0.5, "adversarial": 1.0}
    phase = Phase(Loop(1, {}), weights, {"pixel": {"kind": "pixel"}}, train="decoder", adversary=adversary)
    pixel = Pixel()
    task = Reconstruction(tokenizer, phase, {"pixel": pixel}, Patch(width=4, layers=1))
    rebuilt = task.players["tokenizer"](images)
    l1 = weights["pixel"] * pixel(target * 2 - 1, rebuilt)["pixel"]
    adversarial = -(unit(rebuilt.images) * target).mean()
    slopes = [slope(value, rebuilt.images) for value in (l1, adversarial)]
    values = {
        "l1": l1,
        "adversarial_stand_in": adversarial,
        "adaptive_weight": task.adversarial_balance(rebuilt.images, *slopes),
    }
    for name in case.stored:
        if name.startswith("grad.decoder."):
            (parameter,) = rename({name.removeprefix("grad.decoder."): case.stored[name]}, NAMES)
            values[name] = slope(l1, tokenizer.decoder.get_parameter(parameter))
    return values


def slope(value: Tensor, at: Tensor | nn.Parameter) -> Tensor:
    return torch.autograd.grad(value, at, retain_graph=True)[0]


def unit(images: Tensor) -> Tensor:
    """From [-1, 1] to [0, 1]."""
    return (images + 1) / 2

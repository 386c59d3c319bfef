"""VA-VAE's training objective, through the task of training a tokenizer."""

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from golden_kinds import Case, bare, grid, sequence
from pipeline.critics.patch import Patch
from pipeline.draws import GivenDraws
from pipeline.losses.pixel import Pixel
from pipeline.losses.relational import Relational
from pipeline.recipes.adversary import Adversary
from pipeline.recipes.loops import Loop
from pipeline.recipes.tokenizer_training import Phase
from pipeline.teachers.base import Tap
from pipeline.training.reconstruction import Reconstruction

MATCHES = "ldm.models.autoencoder.AutoencoderKL with loss ldm.modules.losses.LPIPSWithDiscriminator"
LAYER = "encoder.conv_out.weight"  # where the gradients of pixels and alignment are compared


@dataclass
class Batch:
    images: Tensor
    condition: None = None


class Given(torch.nn.Module):
    """The stored feature map in place of a vision model's."""

    name = "given"

    def __init__(self, features: Tensor):
        super().__init__()
        self.features, self.widths = features, (features.shape[1],)

    def maps(self, images: Tensor) -> list[Tensor]:
        return [self.features]


def outputs(case: Case) -> dict[str, Tensor]:
    images, noise = case.inputs["image"], sequence(case.inputs["noise"])
    stated = case.meta["constructor"]["lossconfig"]
    tokenizer, critic = bare(case.imported("vavae")["tokenizer"]), critic_of(case)
    # theirs sums pixels over exp(logvar) and adds logvar a pixel; both sums are divided by the batch alone
    pixels, spread = images[0].numel(), case.state["loss.logvar"]
    weights = {
        "pixel": (pixels / spread.exp()).item(),
        "kl": stated["kl_weight"] * noise[0].numel(),
        "adversarial": stated["disc_weight"],
        "relational": stated["vf_weight"],
    }
    adversary = Adversary({"kind": "patch"}, start=stated["disc_start"])
    losses = {"pixel": {"kind": "pixel"}, "alignment": {"kind": "relational"}}
    phase = Phase(Loop(1, {}), weights, losses, balance={"relational": LAYER}, adversary=adversary)
    alignment = alignment_of(case, stated["cos_margin"], stated["distmat_margin"])
    task = Reconstruction(tokenizer, phase, {"pixel": Pixel(), "alignment": alignment}, critic)
    draws, batch = GivenDraws({"posterior": noise}), Batch(images)

    before = dict(task.turns(batch, draws, step=0))
    after = dict(task.turns(batch, draws, step=10))
    terms, judged = after["tokenizer"], after["critic"]
    assert "adversarial" not in before["tokenizer"] and "critic" not in before
    assert torch.equal(before["tokenizer"]["pixel"], terms["pixel"])
    rebuilt = task.players["tokenizer"](images, None, draws)
    weight, aligned = task.metrics["adaptive_weight"], task.metrics["balanced_weight_relational"]
    given = sequence(case.inputs["given_z"]), sequence(case.inputs["given_features"])
    margins = re.findall(r"\(([\d.]+), ([\d.]+)\)", case.call("given_z").rpartition("(distance matrix, cosine)")[2])
    return {
        "reconstruction": rebuilt.images,
        "moments": grid(tokenizer.features(images), *case.inputs["noise"].shape[2:]),
        "rec_loss": terms["pixel"] / weights["pixel"],
        "nll_loss": terms["pixel"] + pixels * spread,
        "kl_loss": terms["kl"] / stated["kl_weight"],
        "d_weight": weight,
        "g_loss": terms["adversarial"] / weight,
        "discriminator_loss": judged["real"] + judged["fake"],
        "discriminator_logits_real": critic(images),
        "discriminator_logits_fake": critic(rebuilt.images),
        "projected_latent": grid(rebuilt.head_outputs["relational"], *case.inputs["noise"].shape[2:]),
        "vf_loss": terms["relational"] / aligned,
        "vf_weight": aligned,
        "vf_distance_matrix_part": task.metrics["relational_matrix_given"],
        "vf_cosine_part": task.metrics["relational_cosine_given"],
        "total_loss": sum(terms.values()) + pixels * spread,
        "total_loss_before_disc_start": sum(before["tokenizer"].values()) + pixels * spread,
    } | {
        f"given_vf_loss_margins_{i}": alignment_of(case, float(cosine), float(matrix)).compare(*given)["relational"]
        for i, (matrix, cosine) in enumerate(margins)
    }


def alignment_of(case: Case, cosine_margin: float, matrix_margin: float) -> Relational:
    weight, features = case.state["linear_proj.weight"][:, :, 0, 0], case.inputs["features"]
    tap, sides = Tap(Given(features)), list(features.shape[2:])
    loss = Relational(tap, weight.shape[1], sides, cosine_margin=cosine_margin, matrix_margin=matrix_margin)
    loss.head.net.layers[0].weight.data.copy_(weight)
    return bare(loss)


def critic_of(case: Case) -> Patch:
    prefix = "loss.discriminator."
    state = {key.removeprefix(prefix): value for key, value in case.state.items() if key.startswith(prefix)}
    layers = case.meta["constructor"]["lossconfig"]["disc_num_layers"]
    critic = Patch(width=len(state["main.0.weight"]), layers=layers, norm="batch")
    critic.load_state_dict(state)
    return bare(critic)

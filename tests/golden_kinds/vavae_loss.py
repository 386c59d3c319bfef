"""VA-VAE's training objective, without its feature alignment, through the task of training a tokenizer."""

from dataclasses import dataclass

import torch
from torch import Tensor

from golden_kinds import Case, bare, grid, sequence
from pipeline.critics.patch import Patch
from pipeline.draws import GivenDraws
from pipeline.losses.pixel import Pixel
from pipeline.published.vavae import convert
from pipeline.recipe import Adversary, Loop, Phase
from pipeline.reconstruction import Reconstruction

MATCHES = "ldm.models.autoencoder.AutoencoderKL with loss ldm.modules.losses.LPIPSWithDiscriminator"
ALIGNMENT = "the alignment to a vision model is not part of this project yet"
NOT_OURS = {
    "projected_latent": ALIGNMENT,
    "vf_*": ALIGNMENT,
    "given_vf_loss_margins_*": ALIGNMENT,
    "total_loss*": f"it includes the alignment term; its other parts are compared one by one ({ALIGNMENT})",
}


@dataclass
class Batch:
    images: Tensor
    condition: None = None


def outputs(case: Case) -> dict[str, Tensor]:
    images, noise = case.inputs["image"], sequence(case.inputs["noise"])
    stated = case.meta["constructor"]["lossconfig"]
    tokenizer, critic = bare(convert(case.state)["tokenizer"]), critic_of(case)
    # theirs sums pixels over exp(logvar) and adds logvar a pixel; both sums are divided by the batch alone
    pixels, spread = images[0].numel(), case.state["loss.logvar"]
    weights = {
        "pixel": (pixels / spread.exp()).item(),
        "kl": stated["kl_weight"] * noise[0].numel(),
        "adversarial": stated["disc_weight"],
    }
    phase = Phase(Loop(1, {}), weights, adversary=Adversary({"kind": "patch"}, start=stated["disc_start"]))
    task = Reconstruction(tokenizer, phase, {"pixel": Pixel()}, critic)
    draws, batch = GivenDraws({"posterior": noise}), Batch(images)

    before = dict(task.turns(batch, draws, step=0))
    after = dict(task.turns(batch, draws, step=10))
    terms, judged = after["tokenizer"], after["critic"]
    assert "adversarial" not in before["tokenizer"] and "critic" not in before
    assert torch.equal(before["tokenizer"]["pixel"], terms["pixel"])
    rebuilt = tokenizer(images, None, draws).images
    weight = task.metrics["adaptive_weight"]
    return {
        "reconstruction": rebuilt,
        "moments": grid(tokenizer.features(images), *case.inputs["noise"].shape[2:]),
        "rec_loss": terms["pixel"] / weights["pixel"],
        "nll_loss": terms["pixel"] + pixels * spread,
        "kl_loss": terms["kl"] / stated["kl_weight"],
        "d_weight": weight,
        "g_loss": terms["adversarial"] / weight,
        "discriminator_loss": judged["real"] + judged["fake"],
        "discriminator_logits_real": critic(images),
        "discriminator_logits_fake": critic(rebuilt),
    }


def critic_of(case: Case) -> Patch:
    prefix = "loss.discriminator."
    state = {key.removeprefix(prefix): value for key, value in case.state.items() if key.startswith(prefix)}
    layers = case.meta["constructor"]["lossconfig"]["disc_num_layers"]
    critic = Patch(width=len(state["main.0.weight"]), layers=layers, norm="batch")
    critic.load_state_dict(state)
    return bare(critic)

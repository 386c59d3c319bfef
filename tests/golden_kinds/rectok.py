"""RecTok's autoencoder through the import of its state, and its training through the task of training a tokenizer.

Tokens that are kept stay in the order that was drawn there, and are in that of the grid here; `ids_restore` is that
order, which we do not have. Losses of features other than the cosine, which no release uses, are not ours.
"""

import torch
from torch import Tensor

from golden_kinds import Case, bare, grid, sequence
from golden_kinds.robustok import BatchDraws
from golden_kinds.robustok_loss import StandIn
from pipeline.code import Code
from pipeline.critics.patch import Patch
from pipeline.images.reading import ImageBatch
from pipeline.losses.feature_cosine import FeatureCosine
from pipeline.losses.pixel import Pixel
from pipeline.nn.embeddings import unit_rotary_tables
from pipeline.nn.feature_head import HeadShape
from pipeline.published.checkpoint import rename
from pipeline.published.rectok import NAMES, in_shape
from pipeline.recipes.adversary import Adversary
from pipeline.recipes.loops import Loop
from pipeline.recipes.tokenizer_training import Phase
from pipeline.teachers.base import Tap
from pipeline.tokenizers.vit_autoencoder import VitAutoencoder
from pipeline.training.reconstruction import Reconstruction

MATCHES = "models.rectok.RecTok"
NOT_OURS = {
    "training.ids_restore": "kept tokens are in the order of the grid here",
    "loss.psnr": "theirs is of the reconstruction loss, which is divided by exp(logvar)",
    "semantic_l[12]": "features are compared by their cosine, as released",
}
BLOCK = r"transformer\.(\d+)\."
HEAD = {  # of a decoder of features, and a head's names for it
    r"token_embedding\.(.*)": r"embedding.\1",
    r"mask_embedding": "mask_token",
    r"positional_embedding": "transformer.positions",
    r"ln_pre\.weight": "transformer.norm_in.weight",
    r"ln_post\.weight": "transformer.norm_out.weight",
    r"out\.(.*)": r"layers.0.\1",
    BLOCK + r"norm([12])\.weight": r"transformer.blocks.\1.norm\2.weight",
    BLOCK + r"attn\.(.*)": r"transformer.blocks.\1.attention.\2",
    BLOCK + r"mlp\.w12\.(.*)": r"transformer.blocks.\1.feed_forward.up.\2",
    BLOCK + r"mlp\.w3\.(.*)": r"transformer.blocks.\1.feed_forward.down.\2",
}


class Given(torch.nn.Module):
    """A teacher whose features [B, N, C] are given."""

    name = "given"

    def __init__(self, features: Tensor):
        super().__init__()
        side = int(features.shape[1] ** 0.5)
        self.features, self.widths = grid(features, side, side), (features.shape[2],)

    def maps(self, images: Tensor) -> list[Tensor]:
        return [self.features]


def outputs(case: Case) -> dict[str, Tensor]:
    stated = case.meta["constructor"]
    heads = {name: stated["sizes"][stated[f"vit_{name}_model_size"]]["heads"] for name in ("enc", "dec")}
    drop = [stated["mask_ratio_min"], stated["mask_ratio"]]
    imported = case.imported("rectok", heads=heads["enc"], decoder_heads=heads["dec"], token_drop=drop)
    tokenizer = bare(imported["tokenizer"])
    with torch.no_grad():
        values = inference(case, tokenizer)
    return values | training(case, tokenizer)


def inference(case: Case, tokenizer: VitAutoencoder) -> dict[str, Tensor]:
    images, latents = case.inputs["image"], sequence(case.inputs["latents"])
    sides = case.inputs["latents"].shape[2:]
    head_width = tokenizer.config.width // tokenizer.config.heads
    rebuilt, code = tokenizer(images).images, tokenizer.encode(images)
    decoded = tokenizer.decode(Code(z=latents), grid=tuple(sides))
    tables = torch.cat(unit_rotary_tables(tuple(sides), head_width), dim=1)
    values = {
        "moments": tokenizer.features(images),
        "reconstruction": rebuilt,
        "tokenize": grid(code.z, *sides),
        "reconstruct": unit(rebuilt).clamp(0, 1),
        "detokenize": unit(decoded).clamp(0, 1),
        "rope_table": tables[None],
    }
    tokenizer.mean.copy_(case.inputs["latent_mean"]), tokenizer.std.copy_(case.inputs["latent_std"])
    normalized = tokenizer.normalize(code.z)
    values |= {"normalized_tokens": normalized, "denormalized_tokens": tokenizer.denormalize(normalized)}
    tokenizer.mean.zero_(), tokenizer.std.fill_(1)
    return values


def training(case: Case, tokenizer: VitAutoencoder) -> dict[str, Tensor]:
    images, given = case.inputs["image"], case.meta["constructor"]["loss"]
    order = case.inputs["train_noise_0"].argsort(dim=1)[:, : case.inputs["train_noise_1"].shape[1]]
    tokens, channels = order.shape[1], tokenizer.spec.dim
    weights = {
        "pixel": given["reconstruction_weight"] / 4 / case.state["loss.logvar"].exp().item(),
        "perceptual": given["perceptual_weight"] / 4,
        "kl": given["kl_weight"] * tokens * channels,
        "feature_cosine": given["sem_weight"],
        "adversarial": given["discriminator_weight"],
    }
    task = task_of(case, tokenizer, weights)
    turns = task.turns(ImageBatch(images), draws_of(case, order), task.phase.adversary.start)
    terms, judged = dict(turns).values()
    total = sum(terms.values())
    player = task.players["tokenizer"]
    rebuilt = task.rebuild(ImageBatch(images), draws_of(case, order), step=0)
    mean, logvar = tokenizer.neck.split(tokenizer.encoder(images, order.sort(dim=1).values))
    values = {
        "training.reconstruction": rebuilt.images,
        "training.mean": as_drawn(mean, order),
        "training.logvar": as_drawn(logvar, order),
        "training.predicted_features": rebuilt.head_outputs["feature_cosine"],
        "training.compared_features": sequence(task.losses["alignment"].tap.teacher.features),
        "loss.reconstruction_loss": terms["pixel"],
        "loss.perceptual_loss": terms["perceptual"],
        "loss.kl_loss": terms["kl"],
        "loss.sem_loss": terms["feature_cosine"],
        "loss.weighted_gan_loss": terms["adversarial"],
        "loss.gan_loss": terms["adversarial"] / weights["adversarial"],
        "loss.total": total,
        "loss.discriminator": sum(judged.values()),
        "loss.discriminator_before": torch.zeros(()),
        "semantic_cosine": terms["feature_cosine"] / weights["feature_cosine"],
    }
    assert not task.phase.adversary.learns(task.phase.adversary.start - 1)
    for name in (name for name in case.stored if name.startswith("loss.grad.")):
        parameter = parameter_of(player, task, name.removeprefix("loss.grad."), case.stored[name])
        found = torch.autograd.grad(total, parameter, retain_graph=True)[0]
        values[name] = found.reshape_as(case.stored[name])
    return values


def parameter_of(player: torch.nn.Module, task: Reconstruction, name: str, value: Tensor) -> Tensor:
    if name.startswith("sem_decoders."):
        (ours,) = rename({name.split(".", 2)[2]: value}, HEAD)
        return task.losses["alignment"].head.net.get_parameter(ours)
    (ours,) = rename({name: value}, NAMES)
    return player.model.get_parameter(ours)


def task_of(case: Case, tokenizer: VitAutoencoder, weights: dict[str, float]) -> Reconstruction:
    stated, losses = case.meta["constructor"], {}
    size = stated["sizes"][stated["vit_sem_model_size"]]
    shape = HeadShape(size["layers"], size["width"], size["heads"], layers=1, mask=True, form="rotary")
    places = "all" if "rec" in stated["sem_target"] else "dropped"
    losses["alignment"] = FeatureCosine(
        Tap(Given(case.inputs["teacher"])),
        tokenizer.spec.dim,
        list(tokenizer.spec.grid),
        source="perturbed" if stated["sem_input_type"] == "noisy" else "clean",
        head=shape,
        positions=places,
    )
    fill_head(case, losses["alignment"])
    losses |= {"pixel": Pixel(stated["loss"]["reconstruction_loss"]), "perceptual": StandIn()}
    nodes = {"alignment": {"kind": "feature_cosine"}, "pixel": {"kind": "pixel"}, "perceptual": {"kind": "perceptual"}}
    shift = (len(case.inputs["teacher"][0]) * tokenizer.spec.dim / 4096) ** 0.5
    noise = {"shift": shift if stated["noise_schedule"] == "shift" else 1.0, "scale": stated["gamma"]}
    phase = Phase(
        Loop(1, {}),
        weights,
        nodes,
        perturbation={"kind": "interpolated", **noise},
        adversary=Adversary({"kind": "patch"}, start=1, adaptive=False),
    )
    return Reconstruction(tokenizer.train(), phase, losses, critic_of(case))


def fill_head(case: Case, loss: FeatureCosine) -> None:
    prefix = f"model.sem_decoders.{case.meta['constructor']['foundation_model_type']}."
    state = {key.removeprefix(prefix): value for key, value in case.state.items() if key.startswith(prefix)}
    needed = loss.head.net.state_dict()
    loss.head.net.load_state_dict({k: in_shape(v, needed[k]) for k, v in rename(state, HEAD).items()})


def critic_of(case: Case) -> Patch:
    prefix = "loss.discriminator."
    state = {key.removeprefix(prefix): value for key, value in case.state.items() if key.startswith(prefix)}
    layers = sum(key.endswith("running_mean") for key in state)
    critic = Patch(len(state["main.0.weight"]), layers, norm="batch", pixels="unit")
    critic.load_state_dict(state)
    return bare(critic)


def draws_of(case: Case, order: Tensor) -> BatchDraws:
    """The draws, those of tokens in the order of the grid, as the tokens are here."""
    images, place = len(order), order.argsort(dim=1)[..., None]
    posterior, noise = (case.inputs[f"train_noise_{i}"] for i in (1, 3))
    given = {
        "token_drop.share": case.inputs["share_uniform"].expand(images),
        "token_drop.order": case.inputs["train_noise_0"],
        "posterior": posterior.gather(1, place.expand_as(posterior)),
        "perturbation.level": case.inputs["train_noise_2"],
        "perturbation.noise": noise.gather(1, place.expand_as(noise)),
    }
    return BatchDraws(given, images)


def as_drawn(tokens: Tensor, order: Tensor) -> Tensor:
    """Tokens [B, K, C] in the order of the grid in the order that was drawn."""
    rank = order.argsort(dim=1).argsort(dim=1)[..., None]
    return tokens.gather(1, rank.expand_as(tokens))


def unit(images: Tensor) -> Tensor:
    """From [-1, 1] to [0, 1]."""
    return (images + 1) / 2

"""RobusTok's tokenizer, its perturbation, and its semantic loss, through the import of its checkpoint.

Of two stored outputs we have no counterpart: the share of rows that are used is counted otherwise here
(`pipeline.nn.code_usage`). The scale of the semantic loss that grows with the epoch where `clip_norm` is on, which no
release uses, is no setting of ours: the loss is compared at that epoch's scale.
"""

import re
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model

from golden_kinds import Case, bare, grid, split_projections
from pipeline.code import Code
from pipeline.draws import Draws, GivenDraws
from pipeline.losses.class_contrast import ClassContrast
from pipeline.perturbations.codebook_neighbours import CodebookNeighbours
from pipeline.published.checkpoint import rename
from pipeline.published.robustok import NAMES
from pipeline.teachers.vision_model import VisionModel
from pipeline.tokenizers.base import TokenizerOutput
from pipeline.tokenizers.latent_vit import LatentViT
from pipeline.vision.backbone import IMAGENET

MATCHES = "tokenizer.tokenizer_image.xqgan_model.VQModel"
NOT_OURS = {"*.codebook_usage": "usage is counted over an epoch here, there by a running count of a row's hits"}
EPOCHS = 200  # over which the scale of the normalised semantic loss grows to LARGEST_SCALE
LARGEST_SCALE = 100
ENTROPY_TEMPERATURE = 0.01  # LlamaGen's, whose quantiser it is
TEACHER = {  # timm's names of DINOv2's weights, and those of transformers
    r"cls_token": "embeddings.cls_token",
    r"pos_embed": "embeddings.position_embeddings",
    r"patch_embed\.proj\.(.*)": r"embeddings.patch_embeddings.projection.\1",
    r"norm\.(.*)": r"layernorm.\1",
    r"blocks\.(\d+)\.(norm[12]|mlp\.fc[12])\.(.*)": r"encoder.layer.\1.\2.\3",
    r"blocks\.(\d+)\.attn\.proj\.(.*)": r"encoder.layer.\1.attention.o_proj.\2",
    r"blocks\.(\d+)\.attn\.([qkv])\.(.*)": r"encoder.layer.\1.attention.\2_proj.\3",
    r"blocks\.(\d+)\.ls([12])\.gamma": r"encoder.layer.\1.layer_scale\2.lambda1",
}


class BatchDraws(GivenDraws):
    """Given draws of a whole global batch, of which no process holds a part."""

    def __init__(self, given: dict[str, Tensor], images: int):
        super().__init__(given)
        self.places, self.batch = slice(0, images), images


def outputs(case: Case) -> dict[str, Tensor]:
    tokenizer = bare(case.imported("robustok", **options(case))["tokenizer"])
    teacher = teacher_of(case)
    with torch.no_grad():
        values = inference(case, tokenizer) | alone(case, tokenizer)
        features = teacher.features(case.inputs["image"])
        values |= {"teacher_class_feature": features, "teacher_projected": tokenizer.projection(features)}
    for name in ("clean", "perturbed"):
        values |= {f"{name}.{key}": value for key, value in training(case, tokenizer, features, name).items()}
    if any(name.startswith("drop_path") for name in case.stored):
        values |= {f"drop_path.{key}": value for key, value in with_drop_path(case, tokenizer, features).items()}
    return values


def options(case: Case) -> dict[str, object]:
    stated = case.meta["constructor"]
    return {
        "heads": stated["encoder_vit"]["num_heads"],
        "decoder_heads": stated["decoder_vit"]["num_heads"],
        "unit_norm": stated["codebook_l2_norm"],
        "drop_path": stated["drop_path_rate"],
    }


def inference(case: Case, tokenizer: LatentViT) -> dict[str, Tensor]:
    images, ids = case.inputs["image"], case.inputs["codes"].unflatten(0, (len(case.inputs["image"]), -1))
    states = []
    hook = tokenizer.encoder.projection.register_forward_pre_hook(lambda layer, inputs: states.append(inputs[0]))
    h = tokenizer.features(images)
    hook.remove()
    code, _ = tokenizer.neck(h)
    rebuilt, decoded = tokenizer(images).images, tokenizer.decode(Code(ids=ids))
    return {
        "encoder_output": states[0],
        "pre_quant": square(h),
        "indices": code.ids.flatten(),
        "quantized": square(tokenizer.neck.lookup(code.ids)),
        "reconstruction": rebuilt,
        "img_to_reconstructed_img": rebuilt.clamp(-1, 1),
        "code_vectors": square(tokenizer.neck.lookup(ids)),
        "decoded_codes": decoded,
        "fhat_to_img_codes": decoded.clamp(-1, 1),
    }


def alone(case: Case, tokenizer: LatentViT) -> dict[str, Tensor]:
    h = tokenizer.features(case.inputs["image"])
    code, _ = tokenizer.neck(h)
    text = case.call("add_perturbation(pre_quant").partition("(alpha, beta, delta)")[2]
    values = {}
    for i, numbers in enumerate(re.findall(r"\(([\d.]+), ([\d.]+), (\d+)\)", text)):
        change, draws = perturbation(case, f"noise_alone_{i}", *map(float, numbers))
        values[f"alone_{i}"] = square(change(tokenizer.neck, h, code, draws, step=0))
    return values


def training(case: Case, tokenizer: LatentViT, features: Tensor, name: str) -> dict[str, Tensor]:
    rebuilt, losses = terms(case, tokenizer, features, name)
    losses_of_gradients = {
        "vq": losses["vq_loss"],
        "commit": losses["commit_loss"],
        "semantic": losses["semantic_loss"],
        "reconstruction": (rebuilt.images * case.inputs["grad_weight"]).sum(),
    }
    values = losses | {"reconstruction": rebuilt.images}
    for stored in case.stored:
        if stored.startswith(f"{name}.grad_"):
            term, _, parameter = stored.removeprefix(f"{name}.grad_").partition(".")
            (ours,) = rename({parameter: case.stored[stored]}, NAMES)
            values[f"grad_{term}.{parameter}"] = gradient(losses_of_gradients[term], tokenizer.get_parameter(ours))
            values[f"grad_{term}.{parameter}"] = values[f"grad_{term}.{parameter}"].reshape_as(case.stored[stored])
    return values


def with_drop_path(case: Case, tokenizer: LatentViT, features: Tensor) -> dict[str, Tensor]:
    given = [case.inputs[name] for name in sorted(case.inputs) if name.startswith("drop_path_keep")]
    paths = list(branches(tokenizer))
    assert len(given) == len(paths), f"{len(given)} masks for {len(paths)} branches"
    masks = {name: keep[:, None, None] for name, keep in zip(paths, given)}
    rebuilt, losses = terms(case, tokenizer.train(), features, "drop_path", masks)
    tokenizer.eval()
    return losses | {"reconstruction": rebuilt.images}


def branches(tokenizer: LatentViT) -> Iterator[str]:
    """The draws of stochastic depth in the order of their use."""
    for half in ("encoder", "decoder"):
        for i, block in enumerate(getattr(tokenizer, half).vit.blocks):
            if block.drop_path:
                yield from (f"{half}.blocks.{i}.{part}" for part in ("attention", "feed_forward"))


def terms(
    case: Case, tokenizer: LatentViT, features: Tensor, name: str, masks: dict[str, Tensor] | None = None
) -> tuple[TokenizerOutput, dict[str, Tensor]]:
    """The pass of training and its losses, with the weights that the stored ones hold."""
    stated = case.meta["constructor"]
    noise = "perturbed" if name == "drop_path" else name
    numbers = re.search(rf"{noise} \(alpha ([\d.]+), beta ([\d.]+), delta (\d+)\)", case.call("forward(image"))
    change, draws = perturbation(case, f"noise_{noise}", *map(float, numbers.groups()))
    draws.given |= masks or {}
    perturb = partial(change, draws=draws, step=0)
    tokenizer.neck.entropy_temperature = ENTROPY_TEMPERATURE if stated["entropy_loss_ratio"] else None
    rebuilt = tokenizer(case.inputs["image"], None, draws, perturb, class_features=features)
    losses = {
        "vq_loss": rebuilt.terms["vq"],
        "commit_loss": stated["commit_loss_beta"] * rebuilt.terms["commit"],
        "semantic_loss": stated["sem_loss_weight"] * semantic(case, rebuilt),
    }
    ratio = stated["entropy_loss_ratio"]  # 0 in every release
    losses["entropy_loss"] = ratio * rebuilt.terms["entropy"] if ratio else torch.zeros(())
    return rebuilt, losses


def perturbation(
    case: Case, name: str, rate: float, fraction: float, strength: float
) -> tuple[CodebookNeighbours, Draws]:
    """The perturbation and its draws; a rank is drawn as a uniform number here."""
    images = len(case.inputs["image"])
    uniform, ranks = (case.inputs[f"{name}_{i}"].unflatten(0, (images, -1)) for i in (0, 1))
    given = {"redrawn": uniform, "rank": (ranks + 0.5) / strength}
    return CodebookNeighbours(int(strength), rate, fraction), BatchDraws(given, images)


def semantic(case: Case, rebuilt: TokenizerOutput) -> Tensor:
    stated = case.meta["constructor"]
    scale, grows = stated["sem_loss_scale"], stated["clip_norm"]
    if grows:
        epoch = case.number("epoch", "forward(image")
        scale += min(1.0, (epoch % EPOCHS) / EPOCHS if epoch < EPOCHS else 1.0) * (LARGEST_SCALE - scale)
    loss = ClassContrast(teacher_of(case), normalize=grows, scale=scale, source="perturbed")
    return loss(case.inputs["image"], rebuilt)["class_contrast"]


def teacher_of(case: Case) -> VisionModel:
    stated = case.meta["constructor"]["encoder_vit"]
    state = split_projections(case.state, "semantic_model.")
    model = Dinov2Model(
        Dinov2Config(
            hidden_size=stated["embed_dim"],
            num_hidden_layers=stated["depth"],
            num_attention_heads=stated["num_heads"],
            image_size=stated["img_size"],
            patch_size=stated["patch_size"],
        )
    )
    state = rename(state, TEACHER) | {"embeddings.mask_token": model.embeddings.mask_token}
    model.load_state_dict(state)
    return bare(VisionModel("dinov2", model, *IMAGENET))


def gradient(value: Tensor, parameter: Tensor) -> Tensor:
    found = torch.autograd.grad(value, parameter, retain_graph=True, allow_unused=True)[0]
    return torch.zeros_like(parameter) if found is None else found


def square(tokens: Tensor) -> Tensor:
    """[B, N, C] to a square map [B, C, h, h]."""
    side = int(tokens.shape[1] ** 0.5)
    return grid(tokens, side, side)

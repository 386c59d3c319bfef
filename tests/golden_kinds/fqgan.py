"""FQGAN's tokenizers of two and three codebooks: encoding, decoding, and every term of their training."""

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from golden_kinds import Case, bare, grid
from pipeline.bottlenecks.factorised import disentangle
from pipeline.code import Code
from pipeline.losses.branch_contrast import BranchContrast
from pipeline.losses.middle_branch_contrast import MiddleBranchContrast
from pipeline.published.checkpoint import rename
from pipeline.published.fqgan import transformer_names
from pipeline.tokenizers.fqgan import FQGAN
from pipeline.training.loss_heads import attach_heads

MATCHES = "tokenizer.vq_model_"
REPOSITORY = "showlab/FQGAN"
ENTROPY_TEMPERATURE = 0.01  # of its quantiser, LlamaGen's
SEMANTIC_WEIGHT = 0.5  # as released
ORDER = ("vis", "sem", "sem_mid", "sem_high")  # of the branches
TAUGHT = {  # by branch: the head of its loss there, and the loss
    "sem": ("feat_pred_head", BranchContrast),
    "sem_mid": ("mid_sem_feat_pred", MiddleBranchContrast),
    "sem_high": ("high_sem_feat_pred", BranchContrast),
}


class GivenToken(nn.Module):
    """A teacher whose class tokens [B, width] are given."""

    name = "given"

    def __init__(self, tokens: Tensor):
        super().__init__()
        self.tokens, self.width = tokens, tokens.shape[1]

    def forward(self, images: Tensor) -> Tensor:
        return self.tokens


def outputs(case: Case) -> dict[str, Tensor]:
    with torch.no_grad():
        values = inference(case, imported(case))
    return values | trained(case)


def branches_of(case: Case) -> list[str]:
    return [name for name in ORDER if f"free_quant_{name}" in case.inputs]


def imported(case: Case) -> FQGAN:
    heads = re.search(r"adapters \(width, layers, heads\) = \(\d+, \d+, (\d+)\)", case.meta["constructor_notes"])
    unit_norm = case.meta["constructor"]["codebook_l2_norm"]
    options = {"heads": None if heads is None else int(heads[1]), "unit_norm": unit_norm}
    return bare(case.imported("fqgan", **options)["tokenizer"])


def inference(case: Case, tokenizer: FQGAN) -> dict[str, Tensor]:
    images, branches = case.inputs["image"], branches_of(case)
    h = tokenizer.features(images)
    code, _ = tokenizer.neck(h)
    maps, found = tokenizer.encoder(images), {}
    read, z = h.chunk(len(branches), -1), tokenizer.neck.lookup(code.ids).chunk(len(branches), -1)
    for number, name in enumerate(branches):
        found |= {
            f"head_{name}": tokenizer.adapters[number].adapted(maps),
            f"pre_quant_{name}": grid(read[number], *tokenizer.map_grid),
            f"quantized_{name}": grid(z[number], *tokenizer.map_grid),
            f"indices_{name}": code.ids[..., number].flatten(),
        }
    given = [case.inputs[f"codes_{name}"].unflatten(0, (len(images), -1)) for name in branches]
    found["reconstruction"] = tokenizer.decode(Code(ids=code.ids))
    found["decoded_codes"] = tokenizer.decode(Code(ids=torch.stack(given, dim=-1)))
    ratio = case.meta["constructor"]["disentanglement_ratio"]
    for name in (name for name in case.stored if name.startswith("disentangle_free_")):
        pair = (one for one in re.fullmatch(r"disentangle_free_(vis|sem_mid|sem)_(\w+)", name).groups())
        free = tuple(case.inputs[f"free_quant_{one}"].flatten(2).mT for one in pair)
        found[name] = ratio * disentangle(free)
    return found


def losses_of(case: Case, tokenizer: FQGAN) -> dict[str, BranchContrast]:
    """The semantic losses by branch, with the trained heads that a checkpoint holds and a tokenizer does not."""
    heads = re.search(r"feature heads:.*heads (\d+)", case.meta["constructor_notes"])
    branches, losses = branches_of(case), {}
    for name in (name for name in branches if f"teacher_{name}" in case.inputs):
        prefix, kind = TAUGHT[name][0] + ".", TAUGHT[name][1]
        state = {key.removeprefix(prefix): value for key, value in case.state.items() if key.startswith(prefix)}
        renames = {key: f"transformer.{ours}" for key, ours in transformer_names().items()}
        renames |= {r"upscale\.0\.(weight|bias)": r"up.\1", r"upscale\.2\.(weight|bias)": r"down.\1"}
        weights = rename(state, renames | {"class_embedding": "class_token"})
        shape = {"depth": 1 + max(int(key.split(".")[1]) for key in state if key.startswith("transformer."))}
        shape |= {} if heads is None else {"heads": int(heads[1])}
        teacher = GivenToken(case.inputs[f"teacher_{name}"][:, 0])
        place = {"branch": branches.index(name), "branches": len(branches)}
        losses[name] = kind(teacher, tokenizer.spec.dim, list(tokenizer.spec.grid), **place, **shape)
        losses[name].head.predictor.load_state_dict(weights)
    return losses


def trained(case: Case) -> dict[str, Tensor]:
    stated, images, branches = case.meta["constructor"], case.inputs["image"], branches_of(case)
    tokenizer = imported(case).train()
    for part in tokenizer.neck.parts:
        part.entropy_temperature = ENTROPY_TEMPERATURE
    losses = losses_of(case, tokenizer)
    rebuilt = attach_heads(tokenizer, losses.values())(images)
    weights = {"vq": 1.0, "commit": stated["commit_loss_beta"], "entropy": stated["entropy_loss_ratio"]}
    z = rebuilt.code.z.chunk(len(branches), -1)
    semantic = {name: loss(images, rebuilt)[loss.terms[0]] for name, loss in losses.items()}
    disentangled = stated["disentanglement_ratio"] * rebuilt.terms["disentangle"]
    of_codes = sum(len(branches) * weight * rebuilt.terms[term] for term, weight in weights.items())
    total = F.mse_loss(rebuilt.images, images) + disentangled + of_codes
    total = total + SEMANTIC_WEIGHT * sum(semantic.values())
    codebooks = [part.codebook for part in tokenizer.neck.parts]
    grads = torch.autograd.grad(total, [tokenizer.encoder.conv_in.weight, *codebooks], retain_graph=True)
    latents = tokenizer.neck.latents(tokenizer.features(images)).chunk(len(branches), -1)
    terms = [part.quantize(read)[1] for part, read in zip(tokenizer.neck.parts, latents)]
    found = {
        "train_reconstruction": rebuilt.images,
        "disentangle_loss": disentangled,
        "total_without_perceptual_and_gan": total,
        "grad_encoder_conv_in": grads[0],
    }
    for number, name in enumerate(branches):
        found |= {f"{term}_loss_{name}": weight * terms[number][term] for term, weight in weights.items()}
        found[f"grad_codebook_{name}"] = grads[1 + number]
        if name in losses:
            found[f"semantic_features_{name}"] = losses[name].head.predictor.tokens(z[number])
            found[f"semantic_loss_{name}"] = semantic[name]
    return found

"""OmniTokenizer with codes and with a posterior, of images and clips; its published form has pixels in [-0.5, 0.5]."""

import torch
from torch import Tensor

from golden_kinds import Case, bare, sequence
from pipeline.code import Code
from pipeline.draws import GivenDraws
from pipeline.tokenizers.omni_tokenizer import OmniTokenizer

MATCHES = "OmniTokenizer.omnitokenizer.VQGAN"
REPOSITORY = "FoundationVision/OmniTokenizer"


def outputs(case: Case) -> dict[str, Tensor]:
    stated = case.meta["constructor"]
    options = {"image_size": stated["resolution"], "unit_latents": stated["l2_code"]}
    tokenizer = bare(case.imported("omnitokenizer", clips=True, **options)["tokenizer"])
    images = bare(case.imported("omnitokenizer", **options)["tokenizer"])  # without the layers of clips
    found = {}
    with torch.no_grad():
        for name in ("image", "clip"):
            one = images if name == "image" else tokenizer
            frames = case.inputs[name][:, :, None] if name == "image" else case.inputs[name]
            passed = (continuous if stated["use_vae"] else discrete)(case, one, frames, name)
            found |= {f"{key}_{name}": value for key, value in passed.items()}
    return found if stated["use_vae"] else found | updated(case, tokenizer)


def discrete(case: Case, tokenizer: OmniTokenizer, frames: Tensor, name: str) -> dict[str, Tensor]:
    features = tokenizer.read(frames * 2)  # [B, C, T', h, w]
    code, terms = tokenizer.neck(as_tokens(features))
    counts = torch.bincount(code.ids.flatten(), minlength=tokenizer.spec.vocab) / code.ids.numel()
    given = case.inputs[f"codes_{name}"]
    return {
        "encoder": states(tokenizer, frames),
        "to_quantiser": features,
        "quantised": as_maps(code.z, features.shape[2:]),
        "indices": code.ids.unflatten(1, features.shape[2:]),
        "commitment": 0.25 * terms["commit"],
        "perplexity": torch.exp(-(counts * (counts + 1e-10).log()).sum()),
        "reconstruction": pictures(tokenizer.decode_clip(code), name),
        "decoded_indices": pictures(tokenizer.decode_clip(Code(ids=given.flatten(1))), name),
    }


def continuous(case: Case, tokenizer: OmniTokenizer, frames: Tensor, name: str) -> dict[str, Tensor]:
    moments = tokenizer.read(frames * 2)
    shape = moments.shape[2:]
    draws = GivenDraws({"posterior": as_tokens(case.inputs[f"noise_{name}_0"])})
    code, _ = tokenizer.neck(as_tokens(moments), draws)
    mean, logvar = moments.chunk(2, dim=1)
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar)
    sample, rebuilt = as_maps(code.z, shape), pictures(tokenizer.decode_clip(code), name)
    found = {"encoder": states(tokenizer, frames), "moments": moments, "reconstruction": rebuilt}
    if name == "clip":
        return found | {"sample": sample}
    return found | {"sample": sample[:, :, 0], "decode_call": rebuilt, "kl": kl.sum(dim=(1, 2, 3))}


def states(tokenizer: OmniTokenizer, frames: Tensor) -> Tensor:
    """What the layer before the bottleneck reads, [B, width, T', h, w]."""
    kept = []
    hook = tokenizer.time_encoder.register_forward_hook(lambda module, inputs, output: kept.append(output))
    tokenizer.read(frames * 2)
    hook.remove()
    return kept[0].movedim(-1, 1)


def updated(case: Case, tokenizer: OmniTokenizer) -> dict[str, Tensor]:
    """The codebook after one batch of training on the images."""
    h = as_tokens(tokenizer.read(case.inputs["image"][:, :, None] * 2)).detach().requires_grad_()
    neck = tokenizer.neck.train()
    neck(h, GivenDraws({}))
    return {
        "codebook_after_update": neck.codebook,
        "counts_after_update": neck.counts,
        "sums_after_update": neck.sums,
    }


def as_tokens(maps: Tensor) -> Tensor:
    """[B, C, T, h, w] to [B, T h w, C]."""
    return sequence(maps.flatten(2, 3))


def as_maps(tokens: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `as_tokens`."""
    return tokens.mT.unflatten(2, shape)


def pictures(frames: Tensor, name: str) -> Tensor:
    """Frames in the published range; of an image without the axis of time."""
    return (frames[:, :, 0] if name == "image" else frames) / 2

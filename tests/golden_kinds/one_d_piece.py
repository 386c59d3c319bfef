"""One-D-Piece, both stages: codes, what any first tokens of them decode to, and training with the tail dropped.

A first stage has no pixel decoder, so that it is imported with one of random weights, and gives logits of proxy codes.
"""

import math
import re
import tempfile
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from golden_kinds import Case, bare, grid
from golden_kinds.titok import row
from pipeline.draws import GivenDraws
from pipeline.perturbations.prefix_drop import PrefixDrop
from pipeline.tokenizers.base import TokenizerOutput
from pipeline.tokenizers.maskgit_vqgan import MaskgitVqgan
from pipeline.tokenizers.titok import TiTok

MATCHES = "modeling.one_d_piece.OneDPiece"


class BatchLength(GivenDraws):
    """The length of a batch as the number in [0, 1) that gives it."""

    def uniform_of_all(self, name: str) -> Tensor:
        return self.given[name]


def outputs(case: Case) -> dict[str, Tensor]:
    tokenizer = bare(imported(case))
    with torch.no_grad():
        found = encoded(case, tokenizer)
    return found | (second_stage if settings(case)["finetune_decoder"] else first_stage)(case, tokenizer)


def settings(case: Case) -> dict:
    return case.meta["constructor"]["model"]["vq_model"]


def imported(case: Case) -> TiTok:
    heads = [int(n) for n in re.findall(r"= \(\d+, \d+, (\d+)\)", case.meta["constructor_notes"])]
    options = {"heads": heads[0], "decoder_heads": heads[-1], "unit_norm": settings(case)["use_l2_norm"]}
    with tempfile.TemporaryDirectory() as folder:
        if "pixel_quantize.embedding.weight" not in case.state:
            levels = 1 + round(math.log2(settings(case)["vit_dec_patch_size"]))
            codes = {"kind": "vector_quantize", "dim": 4, "vocab": len(case.state["decoder.ffn.2.weight"])}
            MaskgitVqgan(2 ** (levels + 1), codes, 32, [1] * levels, 1).save_pretrained(folder)
            options["proxy_start"] = folder
        return case.imported("one_d_piece", **options)["tokenizer"]


def encoded(case: Case, tokenizer: TiTok) -> dict[str, Tensor]:
    """Codes of the images, and every stored decoding of their first tokens and of the first of the given ids."""
    h = tokenizer.features(case.inputs["image"] * 2 - 1)
    code, terms = tokenizer.neck(h)
    found = {"encoder_output": row(h), "quantized": row(code.z), "indices": code.ids[:, None]}
    if "commitment_loss" in case.stored_names():
        found |= {"commitment_loss": settings(case)["commitment_cost"] * terms["commit"], "codebook_loss": terms["vq"]}
    of_ids = tokenizer.neck.lookup(case.inputs["tokens"])
    for name in case.stored_names():
        if match := re.fullmatch(r"decoded_(tokens_)?(?:cut_)?(\d+|all)", name):
            z, length = of_ids if match[1] else code.z, match[2]
            found[name] = shown(case, tokenizer, tokenizer.states(z if length == "all" else z[:, : int(length)]))
    return found


def shown(case: Case, tokenizer: TiTok, h: Tensor) -> Tensor:
    """Images in [0, 1] of states, or the logits of proxy codes on their grid before there are any."""
    if settings(case)["finetune_decoder"]:
        return (tokenizer.paint(h) + 1) / 2
    return grid(tokenizer.output.logits(h), *tokenizer.output.grid)


def train(case: Case, tokenizer: TiTok, number: int) -> TokenizerOutput:
    """The forward pass in training of that number, its length as stored, on gradients of zero."""
    tokenizer.train().zero_grad()
    end = case.inputs[f"train_end_{number}_0"].float()
    draws = BatchLength({"perturbation.length": (end - 0.5) / tokenizer.spec.tokens})
    perturb = partial(PrefixDrop().perturb, draws=draws, step=0)
    return tokenizer(case.inputs["image"] * 2 - 1, perturb=perturb)


def first_stage(case: Case, tokenizer: TiTok) -> dict[str, Tensor]:
    found = {}
    for number in numbers(case):
        rebuilt = train(case, tokenizer, number)
        logits = rebuilt.features["proxy_logits"]
        loss = F.cross_entropy(logits.flatten(0, 1), case.inputs["proxy_codes"].flatten())
        total = loss + rebuilt.terms["vq"] + settings(case)["commitment_cost"] * rebuilt.terms["commit"]
        total.backward()
        found |= {
            f"train_decoded_{number}": grid(logits, *tokenizer.output.grid),
            f"train_proxy_loss_{number}": loss,
            f"train_total_{number}": total,
            f"grad_latent_tokens_{number}": tokenizer.encoder.tokens.grad,
            f"grad_decoder_latent_positions_{number}": tokenizer.decoder.token_positions.grad,
        }
    return found


def second_stage(case: Case, tokenizer: TiTok) -> dict[str, Tensor]:
    """The last of the passes is the one whose gradients are stored; encoder and codes have no part in its loss."""
    found = {}
    for number in numbers(case):
        rebuilt = train(case, tokenizer, number)
        images = (rebuilt.images + 1) / 2
        found[f"train_decoded_{number}"] = images
    terms = rebuilt.terms
    F.mse_loss(images, case.inputs["image"]).backward()
    return found | {
        "train_quantizer_loss": 0.0 * (terms["vq"] + settings(case)["commitment_cost"] * terms["commit"]),
        "grad_decoder_latent_positions": tokenizer.decoder.token_positions.grad,
        "grad_pixel_codebook_row_sums": tokenizer.output.codebook.grad.sum(dim=1),
    }


def numbers(case: Case) -> list[int]:
    return sorted(int(match[1]) for name in case.inputs if (match := re.fullmatch(r"train_end_(\d+)_0", name)))

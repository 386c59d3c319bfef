"""GigaTok's tokenizer: encoding, decoding, the features that are compared with a teacher's, losses and gradients."""

import re

import torch
import torch.nn.functional as F
from torch import Tensor

from golden_kinds import Case, bare
from golden_kinds.rectok import Given
from pipeline.code import Code
from pipeline.losses.feature_cosine import FeatureCosine
from pipeline.nn.feature_head import HeadShape
from pipeline.teachers.base import Tap
from pipeline.tokenizers.base import TokenizerOutput
from pipeline.tokenizers.gigatok import GigaTok
from pipeline.training.loss_heads import attach_heads

MATCHES = "tokenizer.tokenizer_image.vq.vq_vit_model.VQVitModelPlus"
ENTROPY_TEMPERATURE = 0.01  # of its quantiser, LlamaGen's
SEMANTIC_WEIGHT = 0.5  # as released


def outputs(case: Case) -> dict[str, Tensor]:
    with torch.no_grad():
        values = inference(case, imported(case))
    return values | trained(case)


def imported(case: Case) -> GigaTok:
    stated = case.meta["constructor"]
    sizes = r"(encoder|decoder)(?: \(width, layers, heads\))? = \(\d+, \d+, (\d+)\)"
    heads = {half: int(number) for half, number in re.findall(sizes, case.meta["constructor_notes"])}
    stride = 2 ** (len(stated["encoder_ch_mult"]) - 1)
    side = round(len(case.state["s2to1encoder.positional_embedding"]) ** 0.5)
    tokenizer = bare(
        case.imported(
            "gigatok",
            heads=heads.get("encoder"),
            decoder_heads=heads.get("decoder"),
            unit_norm=stated["codebook_l2_norm"],
            image_size=side * stride,
            gradient="rotation" if stated["rot"] else "straight_through",
            pooling="levels" if stated["multi_level_query_init"] else "mean",
        )["tokenizer"]
    )
    tokenizer.neck.entropy_temperature = ENTROPY_TEMPERATURE if stated["entropy_loss_ratio"] else None
    tokenizer.register_to_config(direct=True)
    return tokenizer


def row(tokens: Tensor) -> Tensor:
    """Tokens [B, N, C] as the map [B, C, 1, N] that they are there."""
    return tokens.mT.unsqueeze(2)


def inference(case: Case, tokenizer: GigaTok) -> dict[str, Tensor]:
    images = case.inputs["image"]
    maps = tokenizer.map_encoder(images)
    seen = []
    hook = tokenizer.encoder.norm_out.register_forward_hook(lambda layer, inputs, output: seen.append(output))
    h = tokenizer.features(images)
    hook.remove()
    code, _ = tokenizer.neck(h)
    z = tokenizer.neck.lookup(code.ids)
    loss, states = loss_of(case, tokenizer), []
    hook = layer_of(case, tokenizer).register_forward_hook(lambda layer, inputs, output: states.append(output))
    decoded = tokenizer.decoded_map(z)
    hook.remove()
    ids = case.inputs["codes"].unflatten(0, (len(images), -1))
    return {
        "spatial_features": maps,
        "encoder_width_features": row(seen[0]),
        "pre_quant": row(h),
        "quantized": row(z),
        "indices": code.ids.flatten(),
        "reconstruction": tokenizer.decode(Code(ids=code.ids)),
        "decoded_spatial": decoded,
        "inner_features": loss.head(states[0]),
        "probe_features": states[0],
        "decoded_codes": tokenizer.decode(Code(ids=ids)),
    }


def layer_of(case: Case, tokenizer: GigaTok) -> torch.nn.Module:
    return tokenizer.get_submodule(layer_name(case))


def layer_name(case: Case) -> str:
    return f"decoder.blocks.{case.meta['constructor']['distill_depth'] - 1}"


def loss_of(case: Case, tokenizer: GigaTok) -> FeatureCosine:
    """The semantic loss with the trained head that the checkpoint holds and a tokenizer does not."""
    prefix = "s1to2decoder.distill_mlp."
    state = {key.removeprefix(prefix): value for key, value in case.state.items() if key.startswith(prefix)}
    shape = HeadShape(layers=len(state) // 2, hidden=len(state["0.weight"]))
    teacher = Tap(Given(case.inputs["teacher"]))
    loss = FeatureCosine(
        teacher, tokenizer.decoder.embedding.out_features, tokenizer.decoder.grid, at=layer_name(case), head=shape
    )
    loss.head.layers.load_state_dict(state)
    return loss


def trained(case: Case) -> dict[str, Tensor]:
    stated, images = case.meta["constructor"], case.inputs["image"]
    tokenizer = imported(case).train()
    loss = loss_of(case, tokenizer)
    player = attach_heads(tokenizer, [loss])
    read, taken = [], []
    hooks = [
        tokenizer.quant_conv.register_forward_hook(lambda layer, inputs, output: read.append(output)),
        tokenizer.neck.register_forward_hook(lambda layer, inputs, output: taken.append(output[0].z)),
    ]
    rebuilt: TokenizerOutput = player(images)
    for hook in hooks:
        hook.remove()
    terms, ratio = rebuilt.terms, stated["entropy_loss_ratio"]
    losses = {
        "vq_loss": terms["vq"],
        "commit_loss": stated["commit_loss_beta"] * terms["commit"],
        "entropy_loss": ratio * terms["entropy"] if ratio else torch.zeros(()),
        "feature_reconstruction_loss": stated["fea_rec_loss_weight"] * terms["direct_map"],
        "semantic_loss": loss(images, rebuilt)["feature_cosine"] - 1,  # a constant that the released loss leaves out
        "rec_loss": F.mse_loss(rebuilt.images, images),
    }
    of_codes = losses["vq_loss"] + losses["commit_loss"] + losses["entropy_loss"]
    codebook = tokenizer.neck.codebook
    total = losses["rec_loss"] + terms["direct_pixel"] + of_codes + losses["feature_reconstruction_loss"]
    total = total + SEMANTIC_WEIGHT * losses["semantic_loss"]
    through = (row(taken[0]) * case.inputs["quant_weight"]).sum()
    grads = lambda value, *leaves: torch.autograd.grad(value, leaves, retain_graph=True)  # noqa: E731
    of_losses = grads(of_codes, read[0], codebook)
    of_total = grads(total, tokenizer.map_encoder.conv_in.weight, loss.head.layers[0].bias)
    return losses | {
        "train_reconstruction": rebuilt.images,
        "train_direct_reconstruction": tokenizer.pixel_decoder(tokenizer.map_encoder(images)),
        "grad_through_quantizer": row(grads(through, read[0])[0]),
        "grad_losses_pre_quant": row(of_losses[0]),
        "grad_losses_codebook": of_losses[1],
        "total_without_perceptual_and_gan": total,
        "grad_encoder_conv_in": of_total[0],
        "grad_distill_mlp_0": of_total[1],
    }

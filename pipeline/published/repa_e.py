"""REPA-E checkpoints: an autoencoder and a SiT, trained together (End2End-Diffusion/REPA-E, arXiv:2504.10483)."""

from collections.abc import Mapping

from torch import Tensor

from pipeline.published import repa
from pipeline.published.autoencoder_trunk import TRAINING, convert_autoencoder, normalised
from pipeline.published.checkpoint import need, read_parts

WHAT = "REPA-E, autoencoder and SiT trained together (REPA-E/sit-repae-*: the dict of model, ema, vae, discriminator)"
PARTS = ("model", "ema", "vae", "discriminator")  # what a training file holds of weights

read = read_parts


def convert(
    state: Mapping[str, Mapping[str, Tensor]], heads: int | None = None, condition_drop: float = 0.1
) -> dict[str, object]:
    """{"tokenizer", "network", "objective"} of a whole training file; the averaged SiT where there is one.

    Codes are normalised by the running mean and variance that lie in the SiT (scale 1 / sqrt(variance), as its sampler
    has it). The discriminator and the projectors stay behind. Raises ValueError for parts, keys or shapes that are not
    REPA-E's, and for a SiT that was trained on a frozen autoencoder.
    """
    if unknown := sorted(set(state) - set(PARTS)):
        raise ValueError(f"unexpected part of a REPA-E checkpoint: {unknown[0]}; there are {', '.join(PARTS)}")
    generator = state.get("ema") or state.get("model")
    if "vae" not in state or generator is None:
        raise ValueError("not a checkpoint of REPA-E's joint training: it needs vae, and ema or model; try import repa")
    variance = need(generator, "bn.running_var", "REPA-E")
    converted = repa.convert(generator, heads, condition_drop)
    side = converted["network"].config.grid[0]
    tokenizer = convert_autoencoder(state["vae"], "REPA-E", TRAINING, side)
    tokenizer = normalised(tokenizer, need(generator, "bn.running_mean", "REPA-E"), variance.sqrt())
    return {"tokenizer": tokenizer, **converted}

"""The numbers of a tokenizer's card beyond those of a report, each with its protocol."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pipeline.code import LatentSpec, stack_ids
from pipeline.measuring.evaluation import Number, Rows, mean
from pipeline.metrics.code_entropy import class_information, entropy_by_class, entropy_by_position
from pipeline.metrics.fidelity import scales
from pipeline.metrics.latent_statistics import channel_moments, used_dimensions
from pipeline.metrics.linear_probe import ITERATIONS, PENALTY, both, probe_accuracy, probe_attribute
from pipeline.metrics.neighbour_alignment import QUANTILE, neighbour_alignment
from pipeline.nn.haar import BANDS

Numbers = Iterator[tuple[str, Number]]
NEIGHBOURS = 10  # of CKNNA
FLOW_LEVELS = (0.0, 0.25, 0.5, 0.75, 0.9)  # of noise in a code
STORED_BITS = 16  # of a number that has no id, as latents/ stores it unless a recipe says otherwise
NO_STRUCTURE = math.pi / 2  # flow loss of the best prediction of independent standard normal values: the mean of
# 1 / ((1 - u)^2 + u^2) over u


def structure_numbers(rows: Rows, size: int, protocol: dict[str, Any]) -> Numbers:
    where = {"scales": f"{scales(size)} of 5", "pixels": "rounded to 8 bits"} | protocol
    meaning = "agreement of contrast and structure at several scales; 1 is equality"
    yield "ms_ssim", Number("MS-SSIM", mean(rows["ms_ssim"]), "higher", meaning, where)


def frequency_numbers(rows: Rows, protocol: dict[str, Any]) -> Numbers:
    """Of `band_error` and `band_power` [n, 4], `residual` and `power` [n, bins]."""
    where = {"transform": "Haar, one level, orthonormal", "pixels": "in [-1, 1]"} | protocol
    for number, band in enumerate(BANDS):
        error, power = mean(rows["band_error"][:, number]), mean(rows["band_power"][:, number])
        share = {"share_of_the_band's_own": error / power} if power else {}
        meaning = f"mean squared error of the {band} coefficients (low or high, first across, then down)"
        details = {"mean_square_of_the_images": power} | share
        yield f"error_{band}", Number(f"Error, {band} band", error, "lower", meaning, where, details=details)
    residual, power = (rows[name].mean(dim=0) for name in ("residual", "power"))
    top = slice((len(power) - 1) // 2 + 1, None)
    meaning = "power of what is missing over that of the images, at the frequencies of the highest octave"
    where = {"transform": "Fourier, means over directions", "pixels": "in [-1, 1]"} | protocol
    details = {f"at_{k}_cycles_an_image": (residual[k] / power[k]).item() for k in marks(len(power)) if power[k] > 0}
    value = (residual[top].sum() / power[top].sum()).item()
    yield "residual_top_octave", Number("Residual, top octave", value, "lower", meaning, where, details=details)


def marks(bins: int) -> list[int]:
    """0, 1, 2, 4, ... and the last of so many frequencies."""
    powers = [2**i for i in range(bins.bit_length()) if 2**i < bins - 1]
    return [0, *powers, bins - 1]


def budget_numbers(spec: LatentSpec, size: int) -> Numbers:
    """What a code costs, from its geometry alone."""
    values, pixels = spec.tokens * spec.dim, size * size
    grid = "x".join(map(str, spec.grid))
    protocol = {"code": f"{grid} tokens of {spec.dim} channels", "images": f"of {size} x {size} pixels"}
    meaning = "numbers in the code of an image, tokens times channels"
    details = {"tokens": spec.tokens, "channels": spec.dim, "share_of_the_image's": values / (3 * pixels)}
    yield "dimensions", Number("Dimensions", values, "neither", meaning, protocol, details=details)
    each = spec.codebooks * math.log2(spec.vocab) if spec.vocab else STORED_BITS * spec.dim
    counted = (
        f"{spec.codebooks} id of {spec.vocab} a token" if spec.vocab else f"{STORED_BITS} bits a number, as stored"
    )
    meaning = "what a code takes without entropy coding, over the pixels of the image"
    bits = spec.tokens * each / pixels
    yield (
        "bits_per_pixel",
        Number("Bits a pixel", bits, "lower", meaning, {"counted": counted} | protocol, headline=True),
    )


def id_numbers(
    ids: Tensor | None, labels: Tensor | None, names: list[str], spec: LatentSpec, protocol: dict[str, Any]
) -> Numbers:
    """How the ids of the training split are used by position and by class; nothing for codes without ids."""
    if ids is None:
        return
    ids = stack_ids(ids)
    places = entropy_by_position(ids)
    where = {"images": f"{len(ids)} of the training split", "uniform": f"{math.log2(spec.vocab):.4g} bits"} | protocol
    limit = f"at most {math.log2(len(ids)):.4g} bits can be seen with so many images"
    meaning = "entropy over images of the id at one position, the mean over positions"
    details = {"least": places.min().item(), "most": places.max().item()}
    number = Number("Entropy by position", mean(places), "higher", meaning, where | {"limit": limit}, "bits")
    number.details = details
    yield "position_entropy", number
    if labels is None:
        return
    meaning = "bits that one id, wherever it stands, tells of the class of its image"
    within = entropy_by_class(ids, labels)
    details = extremes(torch.tensor(list(within.values())), [f"entropy_in_class_{names[label]}" for label in within])
    value = class_information(ids, labels)
    yield "class_information", Number("Class in an id", value, "neither", meaning, where, "bits", details=details)


def stability_numbers(rows: Rows, noises: tuple[float, ...], protocol: dict[str, Any]) -> Numbers:
    """How a code moves: encoded again from its reconstruction, and from its image under noise."""
    again = {"changed": "encoded, decoded to 8-bit pixels, encoded"} | protocol
    yield from moved(rows, "again", "encode-decode-encode", again)
    for decibel in noises:
        noisy = {"changed": f"white noise {decibel:g} dB below the variance of the image's pixels, then encoded"}
        yield from moved(rows, f"noise_{decibel:g}dB", f"noise at {decibel:g} dB", noisy | protocol)


def moved(rows: Rows, name: str, title: str, protocol: dict[str, Any]) -> Numbers:
    if f"{name}_changed" in rows:
        value, meaning = mean(rows[f"{name}_changed"]), "share of the ids that are others than those of the image"
        yield f"ids_changed_{name}", Number(f"Ids changed, {title}", value, "lower", meaning, protocol, "share")
    value, meaning = mean(rows[f"{name}_cosine"]), "cosine of a token's vector and that of the image, mean over tokens"
    yield f"cosine_{name}", Number(f"Code cosine, {title}", value, "higher", meaning, protocol)


def meaning_numbers(
    train: Rows, held_out: Rows, attributes: list[str], vision: dict[str, Any], protocol: dict[str, Any]
) -> Numbers:
    """What of an image's content a code tells: to a linear map, and as a vision model's features do."""
    where = {
        "images": f"{len(held_out['z'])} held-out images",
        "references": f"{len(train['z'])} images of the training split",
        "probe": f"softmax regression, penalty {PENALTY:g}, at most {ITERATIONS} steps of L-BFGS",
        "code": "all tokens side by side, every value standardised",
    } | protocol
    if "labels" in train:
        sets = (train["z"].flatten(1), train["labels"], held_out["z"].flatten(1), held_out["labels"])
        meaning = "share of held-out images whose class a linear map reads off the code"
        number = Number("Linear probe", probe_accuracy(*sets), "higher", meaning, where, "share")
        number.headline = True
        yield "linear_probe", number
    if "flow_noise" in train and "labels" in train:
        yield from flow_numbers(train, held_out, where)
    if "attributes" in train:
        yield from attribute_numbers(train, held_out, attributes, where)
    yield from alignment_numbers(held_out, vision, protocol)


def flow_numbers(train: Rows, held_out: Rows, protocol: dict[str, Any]) -> Numbers:
    """A probe of the class at each level of `FLOW_LEVELS`, on z and `flow_noise` [n, N, C] of both splits.

    As RecTok looks at its codes (Shi et al., arXiv:2512.13421): along the flow that generators learn.
    """
    scores = {}
    for u in FLOW_LEVELS:
        sets = []
        for rows in (train, held_out):
            sets += [torch.lerp(rows["z"], rows["flow_noise"], u).flatten(1), rows["labels"]]
        scores[f"{u:g}"] = probe_accuracy(*sets)
    value = sum(scores.values()) / len(scores)
    meaning = "share of held-out images whose class a linear map reads off a code on its way to noise, mean over levels"
    where = {"levels": ", ".join(scores), "path": "linear", "scale": "as generators see it"} | protocol
    yield "flow_probe", Number("Linear probe along the flow", value, "higher", meaning, where, "share", details=scores)


def attribute_numbers(train: Rows, held_out: Rows, names: list[str], protocol: dict[str, Any]) -> Numbers:
    """Of `attributes` [n, A], a probe each; nothing where no attribute varies in both splits."""
    scores: dict[str, tuple[float, float]] = {}
    for number, name in enumerate(names):
        has, new = (rows["attributes"][:, number] for rows in (train, held_out))
        if both(has, new):
            scores[name] = probe_attribute(train["z"].flatten(1), has, held_out["z"].flatten(1), new)
    if not scores:
        return
    left = [name for name in names if name not in scores]
    where = {"attributes": f"mean over {len(scores)}"} | protocol
    where |= {"left_out": f"all images of a split alike: {', '.join(left)}"} if left else {}
    measured = (
        ("attribute_f1", "Attribute probe, F1", "F1 of what a linear map reads off the code of an attribute", ""),
        ("attribute_accuracy", "Attribute probe", "share of held-out images that it is right about", "share"),
    )
    for place, (key, title, meaning, unit) in enumerate(measured):
        details = {name: score[place] for name, score in scores.items()}
        value = sum(details.values()) / len(details)
        yield key, Number(title, value, "higher", meaning, where, unit, details=details)


def alignment_numbers(rows: Rows, vision: dict[str, Any], protocol: dict[str, Any]) -> Numbers:
    neighbours = min(NEIGHBOURS, len(rows["vision"]) - 2)
    where = {
        "images": f"{len(rows['vision'])} held-out images",
        "neighbours": neighbours,
        "code": "mean over tokens",
        "clipped": f"at the {QUANTILE:g} quantile of absolute values",
        "features": vision,
    } | protocol
    meaning = "1 where codes and the vision model find the same images near each other, and about k / n by chance"
    chance = {"by_chance_about": neighbours / (len(rows["vision"]) - 1)}
    value = neighbour_alignment(rows["z"].mean(dim=1), rows["vision"], neighbours)
    yield "cknna", Number("CKNNA", value, "higher", meaning, where, details=chance)
    views = [name.removesuffix("_code") for name in rows if name.startswith("view_") and name.endswith("_code")]
    found = {v: neighbour_alignment(rows[f"{v}_code"], rows[f"{v}_vision"], neighbours) for v in views}
    meaning = "the same over images that are shrunk, turned and noisy, the mean over the kinds of change"
    details = {name.removeprefix("view_"): value for name, value in found.items()}
    where = where | {"views": "shrunk on grey and turned; four strengths of noise"}
    yield "se_cknna", Number("SE-CKNNA", sum(found.values()) / len(found), "higher", meaning, where, details=details)


def latent_numbers(rows: Rows, size: int, protocol: dict[str, Any]) -> Numbers:
    """Moments of z [n, N, C] at unit scale, and the posterior's divergence where there is one."""
    z = rows["z"]
    found = channel_moments(z)
    where = {"scale": "as generators see it", "channels": z.shape[2]} | protocol
    for name, title, aim in (("mean", "Largest channel mean", 0.0), ("std", "Least even channel std", 1.0)):
        apart = (found[name] - aim).abs()
        worst = found[name][apart.argmax()].item()
        meaning = f"of the channel whose {name} is farthest from {aim:g}, which generators expect"
        details = extremes(found[name])
        yield f"latent_{name}", Number(title, worst, "neither", meaning, where, details=details)
    meaning = "0 for normal values, below for flat, above for heavy-tailed ones; the mean over channels"
    details = extremes(found["excess"])
    kept = found["excess"][found["std"] > 0]
    if len(kept):
        yield "latent_kurtosis", Number("Excess kurtosis", mean(kept), "neither", meaning, where, details=details)
    meaning = "channels that vary on their own: (sum of the covariance's eigenvalues)^2 over the sum of their squares"
    yield "used_dimensions", Number("Channels in use", used_dimensions(z), "neither", meaning, where)
    if "kl" in rows:
        value, values = mean(rows["kl"]), z.shape[1] * z.shape[2]
        bits = value * values / math.log(2)
        details = {"bits_an_image": bits, "bits_a_pixel": bits / size**2}
        meaning = "divergence of the posterior from the standard normal, the mean over the values of a code"
        where = {"scale": "the bottleneck's own"} | protocol
        yield "latent_kl", Number("KL", value, "neither", meaning, where, "nats", details=details)


def extremes(values: Tensor, names: list[str] | None = None) -> dict[str, float]:
    """Values [n] by name, as far as they are finite; of more than 16 the extremes and the middle."""
    names = names or [f"channel_{i}" for i in range(len(values))]
    if len(values) <= 16:
        return {name: value for name, value in zip(names, values.tolist()) if math.isfinite(value)}
    values = values[values.isfinite()]
    return {"least": values.min().item(), "median": values.median().item(), "most": values.max().item()}


def prior_numbers(
    loss: float, ids: Tensor | None, spec: LatentSpec, size: int, prior: dict[str, Any], protocol: dict[str, Any]
) -> Numbers:
    """The small prior's loss on held-out codes: nats an id, or squared error of a velocity. `ids` are training ones."""
    where = {"prior": prior} | protocol
    if ids is None:
        details = {"independent_standard_normal_values": NO_STRUCTURE, "share_of_that": loss / NO_STRUCTURE}
        meaning = "squared error of a small flow transformer after a short training; lower is easier to learn"
        yield "prior_flow", Number("Small prior, flow loss", loss, "lower", meaning, where, details=details)
        return
    bits, uniform = loss / math.log(2), math.log2(spec.vocab)
    alone = mean(entropy_by_position(stack_ids(ids)))
    details = {
        "uniform": uniform,
        "entropy_by_position": alone,
        "share_of_uniform": bits / uniform,
        "bits_a_pixel": bits * spec.tokens * spec.codebooks / size**2,
    }
    meaning = "cross-entropy of a small causal transformer after a short training; lower is easier to learn"
    yield "prior_bits", Number("Small prior, bits an id", bits, "lower", meaning, where, "bits", details=details)


def speed_numbers(rates: dict[str, float], protocol: dict[str, Any]) -> Numbers:
    for name, value in rates.items():
        meaning = f"images that the tokenizer {name}s in a second"
        yield f"speed_{name}", Number(f"Speed, {name}", value, "higher", meaning, protocol, "images/s")

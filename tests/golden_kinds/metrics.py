"""Evaluation numbers of published implementations on stored features, logits and images."""

import re
from fnmatch import fnmatch

import numpy as np
import torch
from torch import Tensor

from golden_kinds import Case
from pipeline.features.moments import Moments, frechet_distance
from pipeline.metrics.inception_score import inception_score, inception_score_chunks
from pipeline.metrics.kernel_distance import kernel_distance, kernel_distance_subsets
from pipeline.metrics.precision_recall import precision_recall
from pipeline.nn.resize import resize_tensorflow1

MATCHES = "functions of torch_fidelity"


def outputs(case: Case) -> dict[str, Tensor]:
    values = {"real_mu": Moments.of(case.inputs["real"]).mean, "real_sigma": Moments.of(case.inputs["real"]).covariance}
    for compute in (frechet, kernel, score, manifold):
        values |= {name: torch.tensor(value, dtype=torch.float64) for name, value in compute(case).items()}
    return values | resized(case)


def frechet(case: Case) -> dict[str, float]:
    """Every published formula has the same value, so that one of ours answers for all."""
    pairs = {"few_fid_*": ("few_fake", "few_real"), "same_fid_*": ("real", "real"), "fid_*": ("fake", "real")}
    values = {}
    for pattern, names in pairs.items():
        distance = frechet_distance(*(Moments.of(case.inputs[name]) for name in names))
        values |= {name: distance for name in case.stored_names() if fnmatch(name, pattern)}
    return values


def kernel(case: Case) -> dict[str, float]:
    real, fake = case.inputs["real"], case.inputs["fake"]
    rows = min(len(real), len(fake))
    subsets, size, seed = (
        int(re.search(pattern, case.call("kernel distance")).group(1))
        for pattern in (r"(\d+) subsets", r"subsets of (\d+) rows", r"RandomState\((\d+)\)")
    )
    mean, std = kernel_distance_subsets(fake, real, subsets, size, seed)
    return {
        "kid_full_unbiased": kernel_distance(fake[:rows], real[:rows]),
        "kid_full_biased": kernel_distance(fake[:rows], real[:rows], unbiased=False),
        "kid_few_full_unbiased": kernel_distance(case.inputs["few_fake"], case.inputs["few_real"]),
        "kid_subsets_mean": mean,
        "kid_subsets_std": std,
    }


def score(case: Case) -> dict[str, float]:
    logits = case.inputs["logits"]
    seed = int(re.search(r"RandomState\((\d+)\)", case.call("inception score")).group(1))
    order = torch.from_numpy(np.random.RandomState(seed).permutation(len(logits)))
    values = {}
    for name in case.stored_names():
        if found := re.fullmatch(r"is_splits_(\d+)(_shuffled)?_mean", name):
            rows = logits[order] if found.group(2) else logits
            values[name], values[name.replace("_mean", "_std")] = inception_score(rows, int(found.group(1)))
        elif found := re.fullmatch(r"is_adm_split_size_(\d+)", name):
            values[name] = inception_score_chunks(logits, int(found.group(1)))
    return values


def manifold(case: Case) -> dict[str, float]:
    values = {}
    for name in case.stored_names():
        if found := re.fullmatch(r"precision(_adm)?_k(\d+)", name):
            both = precision_recall(case.inputs["fake"], case.inputs["real"], int(found.group(2)))
            values[name], values[name.replace("precision", "recall")] = both
    return values


def resized(case: Case) -> dict[str, Tensor]:
    values = {}
    for name in case.stored_names():
        if found := re.fullmatch(r"resized_(\d+)x(\d+)", name):
            values[name] = resize_tensorflow1(case.inputs["image_uint8"], int(found.group(1)), int(found.group(2)))
    return values

"""How evenly ids are used: at every position of a code, and within every class."""

import math

import torch
from torch import Tensor


def entropy(ids: Tensor) -> float:
    """Entropy in bits of how often each value occurs in ids of any shape; of n ids it is log2 n at most."""
    counts = ids.flatten().unique(return_counts=True)[1].double()
    return torch.special.entr(counts / counts.sum()).sum().item() / math.log(2)


def entropy_by_position(ids: Tensor) -> Tensor:
    """Entropy in bits over images of every id of a code, ids [B, N, codebooks] to [N, codebooks] float64."""
    _, positions, codebooks = ids.shape
    rows = [[entropy(ids[:, position, book]) for book in range(codebooks)] for position in range(positions)]
    return torch.tensor(rows, dtype=torch.float64)


def entropy_by_class(ids: Tensor, labels: Tensor) -> dict[int, float]:
    """Entropy in bits of an id at any position, within every class: the mean over codebooks."""
    present = labels.unique().tolist()
    return {label: mean_entropy(ids[labels == label]) for label in present}


def class_information(ids: Tensor, labels: Tensor) -> float:
    """Bits of information of one id, at any position, about its image's class: H(id) - H(id | class), from counts.

    ids [B, N, codebooks], labels [B]; the mean over codebooks. Counts of few images make it too large.
    """
    within = entropy_by_class(ids, labels)
    return mean_entropy(ids) - sum(bits * (labels == label).double().mean().item() for label, bits in within.items())


def mean_entropy(ids: Tensor) -> float:
    """Entropy in bits of an id at any position, the mean over codebooks."""
    return sum(entropy(ids[..., book]) for book in range(ids.shape[-1])) / ids.shape[-1]

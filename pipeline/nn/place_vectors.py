"""Learned positions added to features whose network tells no place."""

from torch import Tensor, nn

from pipeline.nn.embeddings import learned_vectors


class PlaceVectors(nn.Module):
    """Features [B, N, width] plus a learned vector for each place."""

    def __init__(self, places: int, width: int):
        super().__init__()
        self.vectors = learned_vectors(places, width)

    def forward(self, features: Tensor) -> Tensor:
        return features + self.vectors

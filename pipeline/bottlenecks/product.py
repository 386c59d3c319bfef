"""Quantisers side by side: each has channels of its own."""

from pipeline.bottlenecks.base import SideBySide


class Product(SideBySide):
    """`codebooks` quantisers of one kind, which each read and write channels of their own; z is theirs in a row.

    Jegou et al., product quantisation, TPAMI 2011. The inner `dim` is that of one part: two vector quantisers of dim 8
    make 16 channels.
    """

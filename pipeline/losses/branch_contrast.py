"""The codes of one of several quantisers tell their image from others as a frozen network's class token does."""

from pipeline.losses.base import CodebookContrast


class BranchContrast(CodebookContrast):
    """`branch_contrast`: the representation learning of FQGAN's semantic branch (Bai et al., arXiv:2411.16681).

    There with weight 0.5; the teacher of the dual tokenizer is CLIP-L/14.
    """

    terms = ("branch_contrast",)

"""The same contrast for another quantiser, with a term of its own: the middle one of FQGAN's three."""

from pipeline.losses.base import CodebookContrast


class MiddleBranchContrast(CodebookContrast):
    """`middle_branch_contrast`: the triple FQGAN (Bai et al., arXiv:2411.16681) teaches two of its branches.

    There the middle one learns from DINOv2-S, and the last one, by `branch_contrast`, from CLIP-B/16.
    """

    terms = ("middle_branch_contrast",)

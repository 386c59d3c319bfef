"""Tokens, of codes or of a generator, from which a small net can tell a vision model's features."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.code import LatentSpec
from pipeline.components import Arguments
from pipeline.losses.base import Alignment
from pipeline.nn.feature_head import FeatureHead, HeadShape
from pipeline.nn.latent_head import LatentHead, Source
from pipeline.nn.processes import sum_over_processes, world_size
from pipeline.ranges import Count, Counts, Integer, Positive
from pipeline.teachers.base import Resize, Tap
from pipeline.validation import SettingError


def initialise_projector(layer: nn.Module) -> None:
    """As REPA's released code has it: Xavier's uniform law and no bias."""
    if isinstance(layer, nn.Linear):
        nn.init.xavier_uniform_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


class FeatureCosine(Alignment):
    """`feature_cosine`: 1 - cos(h(x)_i, f_i), a mean over positions i, of a trained head h and teacher features f.

    What x is tells the published uses apart.

    - `block: k`, in a generator's losses: the hidden states after block k. REPA (Yu et al., arXiv:2410.06940), whose
      term is this less 1 and whose head is three linear layers of 2048, the default.
    - `source: noised`: the code z on its way to noise, (1 - u) z + u e, for the head alone. Send-VAE
      (arXiv:2601.05823): u uniform, z standardized, one block and three layers.
    - `source: perturbed`: z as the phase's perturbation gives it to the decoder. RecTok (arXiv:2512.13421): the
      perturbation `interpolated` with its shift, three blocks and one layer, a mask token.
    - `source: clean`: the code itself.
    - `at: decoder.blocks.2`: the output of that module of the tokenizer, a map or the tokens of one; of a sequence,
      the image's positions. GigaTok (arXiv:2504.08736): a layer early in the decoder, for its code has no positions.

    Levels u are shifted as s t / (1 + (s - 1) t) of a uniform t, with s = `shift`, times sqrt(values of a code /
    `shift_base`) where a base is stated. `positions: dropped` takes the mean over the positions that the encoder
    has not read. With `class_token`, of a generator that denoises one, its hidden state is compared with the teacher's,
    a position more (REG, arXiv:2507.01467). The metric `cosine_<teacher>` is the mean cosine.
    """

    terms = ("feature_cosine",)

    def __init__(
        self,
        extractor: Tap,
        dim: Count,
        grid: Counts,
        teacher: str = "auto",
        layer: Integer = -1,
        teacher_size: Count | Literal["grid"] | None = "grid",
        teacher_resize: Resize = "antialiased",
        block: Count | None = None,
        at: str | None = None,
        source: Source = "clean",
        head: HeadShape = HeadShape(),
        shift: Positive = 1.0,
        shift_base: Positive | None = None,
        standardize: bool = False,
        positions: Literal["all", "dropped"] = "all",
        class_token: bool = False,
    ):
        super().__init__(extractor, grid, block, at)
        net = FeatureHead(dim, extractor.width, grid, head)
        of_code = block is None and at is None
        if block is not None:
            net.layers.apply(initialise_projector)
        self.head = LatentHead(net, source, shift, shift_base, standardize) if of_code else net
        self.positions = positions

    @classmethod
    def needs(cls, arguments: Arguments) -> tuple[str, ...]:
        return ("kept",) if arguments.head.mask or arguments.positions == "dropped" else ()

    @classmethod
    def batch_statistics(cls, arguments: Arguments) -> tuple[str, ...]:
        dropped = ("the number of dropped positions in feature_cosine",) if arguments.positions == "dropped" else ()
        return (*dropped, "the moments of codes in feature_cosine") if arguments.standardize else dropped

    @classmethod
    def of_one_grid(cls, arguments: Arguments) -> bool:
        return arguments.head.blocks > 0  # whose positions are fixed

    @classmethod
    def validate(cls, spec: LatentSpec, arguments: Arguments) -> None:
        super().validate(spec, arguments)
        block, at, source = arguments.block, arguments.at, arguments.source
        shift, shift_base = arguments.shift, arguments.shift_base
        if block is not None and at is not None:
            raise ValueError("block is of a generator and at of a tokenizer; state one of them")
        if (block is not None or at is not None) and (source != "clean" or arguments.standardize):
            raise ValueError("hidden states are compared as they are; leave source and standardize out")
        if arguments.class_token and (block is None or arguments.head.blocks):
            raise SettingError("class_token", " is of a generator's block, under a head of layers alone; leave it out")
        if source != "noised" and (shift != 1 or shift_base is not None):
            raise ValueError("shift and shift_base are of source: noised; the phase's perturbation states its own")

    def compare(self, tokens: Tensor, targets: Tensor, kept: Tensor | None = None) -> dict[str, Tensor]:
        cosine = F.cosine_similarity(tokens.float(), targets.float(), dim=-1)  # [B, N]
        self.metrics = {f"cosine_{self.name}": cosine.detach().mean()}
        if self.positions == "all" or kept is None:
            return {"feature_cosine": 1 - cosine.mean()}
        left_out = (~kept).to(cosine)
        count = (
            sum_over_processes(left_out.sum()) / world_size()
        )  # so that the mean over processes is that over all such positions
        return {"feature_cosine": ((1 - cosine) * left_out).sum() / count.clamp(min=1)}

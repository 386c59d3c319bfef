"""Residual quantisation of a whole map at growing scales, each of which is trained by itself."""

import torch
from torch import Tensor

from pipeline import components
from pipeline.bottlenecks.base import Quantizer, build_token_quantizer
from pipeline.code import Code
from pipeline.components import Arguments, Node
from pipeline.draws import Draws, PartDraws
from pipeline.nn.growing_maps import GrowingMaps
from pipeline.nn.scales import as_map, as_rows, enlarge, shrink
from pipeline.ranges import Counts, FractionBelowOne
from pipeline.validation import SettingError


class ScaleByScale(GrowingMaps, Quantizer):
    """The scales of `multi_scale` as TokenFlow has them (Qu et al., arXiv:2412.03069), without phi.

    They differ in training alone. The terms are the quantiser's own, of the latents of each scale, and means over the
    scales; the gradient of z goes to the latents of every scale, and from there to h, not to h at once.

    With probability `drop`, 0.1 there, one scale but the first is left out of a training step: its z is 0, it has no
    share in the terms, and later scales quantise what it would have. Its ids are those that it would have had.
    """

    def __init__(self, bottleneck: Node, sides: Counts, drop: FractionBelowOne = 0.0):
        super().__init__()
        if drop and len(sides) == 1:
            raise SettingError("drop", f" is {drop}, but the first scale is never left out and is all; leave drop out")
        self.begin_scales(build_token_quantizer(bottleneck, "scales"), sides)
        self.drop = drop
        self.register_buffer("kernels", torch.empty(0, self.dim, 3, 3), persistent=False)
        self.register_buffer("offsets", torch.empty(0, self.dim), persistent=False)

    @classmethod
    def terms(cls, arguments: Arguments) -> tuple[str, ...]:
        part, values = components.check("bottlenecks", arguments.bottleneck)
        return part.terms(values)

    def quantize(self, latents: Tensor, draws: Draws | None = None) -> tuple[Code, dict[str, Tensor]]:
        self.check_features(latents)
        self.quantizer.begin(self.quantizer.latents(latents), draws)
        rest, left_out, codes, outputs = as_map(latents, self.sides[-1]), self.dropped_scale(draws), [], []
        for level, side in enumerate(self.sides):
            given = None if draws is None else PartDraws(draws, f"level_{level}")
            points = self.quantizer.latents(as_rows(shrink(rest, side)))
            code, terms = self.quantizer.quantize(points, given)
            if level == left_out:
                code = Code(z=torch.zeros_like(code.z), ids=code.ids)
            else:
                rest = rest - enlarge(as_map(code.z.detach(), side), self.sides[-1])
                outputs.append(terms)
            codes.append(code)
        means = {name: torch.stack([terms[name] for terms in outputs]).mean() for name in outputs[0]}
        z, ids = (torch.cat([getattr(code, name) for code in codes], dim=1) for name in ("z", "ids"))
        return Code(z=z, ids=ids), means

    def decoder_input(self, z: Tensor, h: Tensor | None = None) -> Tensor:
        return super().decoder_input(z)

    @torch.compiler.disable
    def dropped_scale(self, draws: Draws | None) -> int | None:
        """The scale that a training step leaves out, for all images alike; None for no one."""
        if draws is None or not self.training or not self.drop:
            return None
        share = draws.uniform_of_all("dropped_scale")[0].item() / self.drop
        return None if share >= 1 else 1 + int(share * (len(self.sides) - 1))

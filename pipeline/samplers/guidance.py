"""Classifier-free guidance and its relatives, as functions that wrap a network."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from pipeline.code import Condition
from pipeline.components import ShortForm
from pipeline.nn.class_token import count_token_rows
from pipeline.nn.conditions import NO_TEXT, filled, where
from pipeline.ranges import Count, Fraction, NotNegative, Number, RangedFields
from pipeline.validation import SettingError

# Arguments that a network and a weak one agree in, with the value of one that has no such argument.
SHARED = dict.fromkeys(("grid", "dim", "outputs", "num_classes", "class_token"), 0) | NO_TEXT
WEAK_OR_NEGATIVE = "a weak network guides away from itself, not from a negative condition; leave one of them out"
NOTHING_TO_GUIDE = "an unconditional generator has nothing to guide away from; leave the guidance scale at 1"


@dataclass(frozen=True)
class Guidance(RangedFields, ShortForm):
    """guided = unconditional + scale * (conditional - unconditional); a scale of 1 is exactly the unguided path.

    Ho and Salimans, arXiv:2207.12598. `interval` bounds the noise levels u at which guidance acts (Kynkäänniemi et
    al., arXiv:2404.07724); `channels` guides the first few channels only, as the published numbers of DiT, SiT and
    LightningDiT did; `schedule` scales (scale - start) by x = (1 - u)^power, by (1 - cos(pi x)) / 2, or by
    cos(pi x) / 2; `rescale` matches the guided prediction's std to the conditional one's (Lin et al.,
    arXiv:2305.08891, section 3.4).

    For ids, u is the share of the sampling steps still to come: an interval of (0, 0.82) is a schedule that steps up
    after 18 % of the tokens, and `cosine` with a power is RAR's and MaskGIT's power-cosine. `first_full` guides the
    first of them by the whole scale all the same, as released GigaTok does.
    """

    short: ClassVar[str] = "scale"
    scale: Number = 1.0  # 1 is the unguided path; a bare number in place of the section is its scale
    interval: tuple[Fraction, Fraction] = (0.0, 1.0)  # noise levels at which guidance acts
    channels: Count | None = None  # guide the first few channels only, as DiT's published numbers did
    schedule: Literal["constant", "linear", "cosine", "flipped_cosine"] = "constant"
    power: NotNegative = 1.0  # of the schedule
    rescale: Fraction = 0.0  # how far the guided prediction's std is brought to the conditional one's
    class_token: Number | None = None  # scale of a class token that is denoised too; 1: not guided; null: as the code
    start: Number = 1.0  # the scale where the schedule begins, at x = 0; MaskGen's begin at 2
    first_full: bool = False  # the whole scale at u = 1, whatever interval and schedule say of it

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.interval
        if low > high:
            raise SettingError("interval", f" is [{low:g}, {high:g}]; give the lower noise level first")
        if self.scale == 1 and self.start != 1:
            raise SettingError("start", f" is {self.start:g}, and the scale is 1, which guides nowhere; leave it out")

    def at(self, time: float) -> float:
        """The scale at noise level `time`."""
        return self._follow(self.scale, time)

    def of_class_token(self, time: float) -> float:
        """The scale of a class token at noise level `time`."""
        return self.at(time) if self.class_token is None else self._follow(self.class_token, time)

    def _follow(self, scale: float, time: float) -> float:
        """What the schedule makes of a scale at noise level `time`: 1 outside of the interval."""
        low, high = self.interval
        if self.first_full and time >= 1:
            return scale
        if not low - 1e-6 <= time <= high + 1e-6:  # a level on the edge may have been rounded over it
            return 1.0
        x = max(0.0, 1 - time) ** self.power
        cosine = math.cos(math.pi * x)
        share = {"constant": 1.0, "linear": x, "cosine": (1 - cosine) / 2, "flipped_cosine": cosine / 2}[self.schedule]
        return self.start + (scale - self.start) * share


Predict = Callable[[Tensor, float], Tensor]


def guided(
    network: nn.Module,
    condition: Condition | None,
    guidance: Guidance = Guidance(),
    weak: nn.Module | None = None,
    negative: Condition | None = None,
) -> Predict:
    """`predict(z, u)` [B, N, C], u -> [B, N, outputs * C]: the network under guidance, both halves in one batch.

    With `weak`, a smaller or earlier network is asked with the same condition in place of the null one (AutoGuidance,
    Karras et al., arXiv:2406.02507); with `negative` it leads away from that condition instead. The state stays in its
    own precision: the network is asked in the network's, and its answer comes back in the state's. Raises ValueError
    when guidance is asked of an unconditional network.
    """
    if guidance.scale != 1 and weak is None and condition is None:
        raise ValueError(NOTHING_TO_GUIDE)
    if weak is not None and negative is not None:
        raise ValueError(WEAK_OR_NEGATIVE)
    rows = 0 if guidance.class_token is None else token_rows(network)

    def predict(z: Tensor, time: float) -> Tensor:
        scale = guidance.at(time)
        if scale == 1:
            return ask(network, z, time, condition)
        if weak is None:
            both = Condition.cat([condition, opposite(network, condition, negative)])
            with_it, without = ask(network, torch.cat([z, z]), time, both).chunk(2)
        else:
            with_it, without = ask(network, z, time, condition), ask(weak, z, time, condition)
        result = combine(with_it, without, scale, guidance.channels or z.shape[-1], guidance.rescale)
        if not rows:
            return result
        token = torch.lerp(without[:, -rows:], with_it[:, -rows:], guidance.of_class_token(time))
        return torch.cat([result[:, :-rows], token], dim=1)

    return predict


def token_rows(network: nn.Module) -> int:
    """Rows of a state that are the network's class token; ValueError where it has none."""
    width = network.config.get("class_token", 0)
    if not width:
        raise ValueError("guidance of a class token is asked for, and this network has none; leave it out")
    return count_token_rows(width, network.config.dim)


def check_pair(network: nn.Module, weak: nn.Module) -> None:
    """ValueError unless two networks answer for the same codes and classes."""
    for name, absent in SHARED.items():
        ours, theirs = network.config.get(name, absent), weak.config.get(name, absent)
        if ours != theirs:
            raise ValueError(
                f"the weak network has {name}={theirs}, the network that it guides {ours}; they must agree"
            )


def check_same_codes(tokenizer: nn.Module, network: nn.Module) -> None:
    """ValueError unless a network generates the codes that a tokenizer decodes."""
    spec = tokenizer.spec
    shape = {"grid": list(spec.grid), "levels": list(spec.levels), "dim": spec.dim, "vocab": spec.vocab}
    shape["ends"] = spec.ends
    shape["segments"] = [list(grid) for grid in spec.segments]
    for name, decoded in shape.items():
        made = network.config.get(name, decoded)
        if (list(made) if isinstance(made, (list, tuple)) else made) != decoded:
            raise ValueError(
                f"the tokenizer decodes codes of {name}={decoded}, the network makes {made}; they must agree"
            )
    if not network.has_taken(tokenizer.neck):
        raise ValueError(
            "the network was trained on code vectors of another tokenizer; take the tokenizer that it was trained with"
        )


def ask(network: nn.Module, z: Tensor, time: float, condition: Condition | None) -> Tensor:
    """The network's prediction, in the precision of z whatever the network's own."""
    precision = getattr(network, "dtype", z.dtype)
    return network(z.to(precision), levels(z, time), condition).to(z.dtype)


def levels(z: Tensor, time: float) -> Tensor:
    """The noise level of every image, [B] in float32 whatever the precision of z."""
    return torch.full((len(z),), time, dtype=torch.float32, device=z.device)


def combine(conditional: Tensor, unconditional: Tensor, scale: float, channels: int, rescale: float = 0.0) -> Tensor:
    """Guide the first `channels` channels [B, N, outputs * C]; the others (a learned variance) stay conditional."""
    aim, base = conditional[..., :channels], unconditional[..., :channels]
    result = base + scale * (aim - base)
    if rescale:
        matched = result * (aim.std(dim=(1, 2), keepdim=True) / result.std(dim=(1, 2), keepdim=True))
        result = rescale * matched + (1 - rescale) * result
    return torch.cat([result, conditional[..., channels:]], dim=-1)


def guided_logits(logits: Tensor, scale: float) -> Tensor:
    """Logits [2B, ...], the conditional half first, to guided ones [B, ...]; a scale of 1 is the conditional half."""
    conditional, unconditional = logits.chunk(2)
    return conditional if scale == 1 else torch.lerp(unconditional, conditional, scale)  # in one pass


def opposite(network: nn.Module, condition: Condition, negative: Condition | None) -> Condition:
    """What guidance leads away from: `negative`, or the null condition where that is None or states nothing."""
    null = network.null(condition)
    return null if negative is None else filled(negative, null)


def both_halves(
    network: nn.Module, condition: Condition | None, guidance: Guidance, negative: Condition | None = None
) -> Condition | None:
    """The condition and its `opposite` in a batch of twice the size, for networks of ids; as it is when unguided.

    Raises ValueError when guidance is asked of an unconditional network, or of a kind that is for continuous codes.
    """
    if guidance.channels is not None or guidance.rescale:
        raise ValueError("guidance_channels and guidance_rescale are for continuous codes; leave them out for ids")
    if guidance.scale == 1:
        return condition
    if condition is None:
        raise ValueError(NOTHING_TO_GUIDE)
    return Condition.cat([condition, opposite(network, condition, negative)])


def drop(network: nn.Module, condition: Condition | None, uniform: Tensor) -> Condition | None:
    """The condition with the null in place of it where `uniform` [B] falls under the network's `condition_drop`.

    Of the condition the network gets what it reads. One in a wrapper for several processes is asked through it.
    """
    network = getattr(network, "module", network)
    condition = network.select(condition)
    if condition is None:
        return None
    return where(uniform < network.config.condition_drop, network.null(condition), condition)

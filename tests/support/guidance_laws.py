"""The guidance that a stored call of generate states, in this project's terms."""

import re
from typing import Literal

from pipeline.samplers.guidance import Guidance

Call = dict[str, object]  # an entry of meta.json's calls


def stated(call: Call, name: str, default: float | None = None) -> float:
    """The number that a call gives for `name`; ValueError where it gives none and there is no default."""
    text = f"{call['call']}; {call.get('description', '')}"
    match = re.search(rf"\b{name}\s*=\s*([-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?)", text)
    if match is None and default is None:
        raise ValueError(f"the call {call['call']!r} does not state {name}")
    return default if match is None else float(match.group(1))


def guidance_law(call: Call, without_decay: Literal["constant", "power-cosine"]) -> Guidance:
    """The law of MaskGIT and RAR: constant, linear in the steps, or power-cosine; `without_decay` where none is named.

    Constant and linear guidance of scale s are cond + s (cond - null), a scale of 1 + s here; linear guidance rises
    with the fraction of finished steps. Power-cosine is null + s (cond - null), and its power 0 is constant. A scale of
    0 is no guidance, except that MaskGIT's power-cosine has no such case.
    """
    decay = re.search(r"guidance_decay\s*=\s*[\"']?([\w-]+)", str(call["call"]))
    law = decay[1].lower().replace("_", "-") if decay else without_decay
    law = {"true": "linear", "false": "constant"}.get(law, law)  # of the first release
    scale = stated(call, "guidance_scale", 0.0)
    if law == "power-cosine":
        power = stated(call, "guidance_scale_pow", 1.0)
        return Guidance(scale if decay or scale else 1.0, schedule="cosine", power=power)
    if law == "none":
        return Guidance()
    if law not in ("constant", "linear"):
        raise ValueError(f"guidance_decay={law} is not known; there are: constant, linear, power-cosine, none")
    return Guidance(1 + scale, schedule=law)


def stepped_guidance(call: Call, tokens: int) -> Guidance:
    """LlamaGen's: constant up to and with token cfg_interval + 1, or everywhere for -1; a scale of 1 is none."""
    last = int(stated(call, "cfg_interval", -1.0))
    low = 0.0 if last < 0 else 1 - (last + 1) / tokens
    return Guidance(stated(call, "cfg_scale", 1.0), interval=(max(low, 0.0), 1.0))

"""Instella-T2I's generators: logits, noised bits, and the bits that both sample with given uniform numbers."""

import re

import torch
from torch import Tensor

from golden_kinds import Case, bare
from pipeline.code import Condition, LatentSpec, stack_ids
from pipeline.draws import GivenDraws
from pipeline.samplers.bit_flipping import BitFlipping
from pipeline.samplers.choice import Choice
from pipeline.samplers.guidance import Guidance
from pipeline.samplers.request import SamplingRequest

MATCHES = "models."
REPOSITORY = "AMD-AGI/Instella-T2I"


@torch.no_grad()
def outputs(case: Case) -> dict[str, Tensor]:
    parts = case.imported("instella", text_tokens=case.inputs["text_mask"].shape[1])
    network = bare(parts["network"])
    return (autoregressive if network.role == "causal" else diffusion)(case, network, parts["objective"])


def captions(case: Case) -> Condition:
    """Features [layers, rows, places, width] and masks of all rows."""
    features, mask = case.inputs["llm_features"], case.inputs["text_mask"]
    return Condition(text=features.permute(1, 2, 0, 3).flatten(2), text_mask=mask > 0)


def request_of(case: Case, network, draws: GivenDraws, steps: int, scale: float) -> SamplingRequest:
    """The first half of the rows is asked for, the other half is what guidance leads away from."""
    condition, config = captions(case), network.config
    half = len(condition) // 2
    spec = LatentSpec(tuple(config.grid), dim=1, vocab=2, codebooks=config.codebooks)
    halves = {"condition": condition[:half], "negative": condition[half:]}
    return SamplingRequest(network, spec=spec, draws=draws, steps=steps, guidance=Guidance(scale), **halves)


def numbers(case: Case, prefix: str) -> list[Tensor]:
    """The uniform numbers of one call in their order."""
    names = [name for name in case.inputs if name.removeprefix(prefix).isdigit() and name.startswith(prefix)]
    return [case.inputs[name] for name in sorted(names, key=lambda name: int(name.removeprefix(prefix)))]


def autoregressive(case: Case, network, objective) -> dict[str, Tensor]:
    ids, condition = case.inputs["bits"].long(), captions(case)
    states = [network.states(given, condition) for given in (ids, ids[:, :0])]
    found = {name: network.head.linear(state) for name, state in zip(("logits", "logits_first"), states)}
    stated = re.findall(r"guidance ([\d.]+), temperature ([\d.]+)", case.call("BinaryAR.sample"))
    calls = zip(("generated", "generated_unguided"), ("uniform_", "uniform_plain_"), stated, strict=True)
    for name, prefix, (guidance, temperature) in calls:
        uniform = torch.cat(numbers(case, prefix), dim=1)
        below = torch.nextafter(1 - uniform, torch.ones(()))  # theirs sets a bit below its chance, ours above the other
        draws = GivenDraws({"choice": below.clamp_max(1 - 2**-24)})
        request = request_of(case, network, draws, uniform.shape[1], 1 + float(guidance))
        found[name] = stack_ids(objective.sample(request, Choice(float(temperature))).ids)
    return found


def diffusion(case: Case, network, objective) -> dict[str, Tensor]:
    ids, time = case.inputs["bits"].long(), case.inputs["timestep"]
    found = {
        "logits": network(ids, time, captions(case)),
        "noised": objective.add_noise(ids, time, case.inputs["uniform_noise_0"]),
    }
    stated = case.call("protocol 1", "protocol 2")
    for number, protocol in ((1, "renoise"), (2, "posterior")):
        start, *others = numbers(case, f"uniform_p{number}_")
        draws = GivenDraws({"start": start} | ({"bits": torch.stack(others, dim=1)} if others else {}))
        settings = numbers_of_protocol(stated, number)
        request = request_of(case, network, draws, 1 + len(others), 1 + settings.pop("guidance"))
        found[f"generated_protocol_{number}"] = stack_ids(
            objective.sample(request, BitFlipping(protocol, **settings)).ids
        )
    return found


def numbers_of_protocol(text: str, number: int) -> dict[str, float]:
    """Guidance, temperature and power, as a call states them: `protocol 2 (3 steps, guidance 1, temp 0.7, rho 1.5)`."""
    inside = text.split(f"protocol {number} (")[1].split(")")[0]
    names = {"guidance": "guidance", "temp": "temperature", "rho": "power"}
    pairs = [part.split() for part in inside.split(", ")]
    return {names[words[0]]: float(words[1]) for words in pairs if words[0] in names}

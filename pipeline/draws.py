"""Where random numbers come from: by step and place while training, by image while sampling, or given."""

import hashlib
import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

OWN_GENERATORS = ("cuda", "meta")  # of devices that draw themselves; others may lack generators, or hashes of int64
GOLDEN = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as int64, the step between the inputs of splitmix64


class Draws(ABC):
    """Random tensors by name, one row an image of the batch at hand."""

    batch: int | None = None  # images of the global batch, where the one at hand is a part of it
    step: int | None = None  # of training, 0 the first; None where nothing is trained
    seeds: list[int] | None = None  # of the images, where each has its own

    @abstractmethod
    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Standard normal [B, *shape], float32."""

    @abstractmethod
    def uniform(self, name: str, shape: tuple[int, ...] = ()) -> Tensor:
        """Uniform in [0, 1), [B, *shape], float32."""

    def uniform_of_all(self, name: str) -> Tensor:
        """`uniform(name)` of all images of the step, other processes' and micro-batches' too, for what they share."""
        return self.uniform(name)

    def keep_mask(self, name: str, shape: tuple[int, ...], rate: float) -> Tensor:
        """Which entries dropout leaves, [B, *shape] bool: each with probability 1 - `rate`."""
        return self.uniform(name, shape) >= rate


class StepDraws(Draws):
    """The draws of one training step: functions of (seed, step, name, place in the global batch).

    Each named tensor is drawn for the whole global batch and this process keeps its own rows, so that any number of
    processes and of accumulated micro-batches trains on the same noise. Devices that are not in `OWN_GENERATORS` have
    the CPU's numbers.
    """

    def __init__(self, seed: int, step: int, places: slice, batch: int, device: torch.device | str = "cpu"):
        self.seed, self.step, self.places, self.batch, self.device = seed, step, places, batch, torch.device(device)
        self.drawn_on = self.device if self.device.type in OWN_GENERATORS else torch.device("cpu")

    @torch.compiler.disable
    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(self.batch, *shape, **self._origin(name))[self.places].to(self.device)

    @torch.compiler.disable
    def uniform(self, name: str, shape: tuple[int, ...] = ()) -> Tensor:
        return torch.rand(self.batch, *shape, **self._origin(name))[self.places].to(self.device)

    def uniform_of_all(self, name: str) -> Tensor:
        return torch.rand(self.batch, **self._origin(name)).to(self.device)

    def keep_mask(self, name: str, shape: tuple[int, ...], rate: float) -> Tensor:
        """As in the base, by hashing (seed, step, name, place, entry): a process computes its own rows alone.

        Where draws are made, and four entries a hash, of 16 bits each, so that the rate is met to 1 / 65,536 and a mask
        costs less than a tensor of random numbers would.
        """
        count, least = math.prod(shape), min(round(rate * 2**16) - 2**15, 2**15 - 1)
        places = torch.arange(self.places.start, self.places.stop, device=self.drawn_on)
        rows = scramble(places + mix(self.seed, self.step, name))
        words = torch.arange(1, -(-count // 4) + 1, device=self.drawn_on) * GOLDEN
        bits = scramble(rows[:, None] + words).view(torch.int16)  # [B, 4 words], uniform over all values
        return (bits[:, :count] >= least).reshape(len(places), *shape).to(self.device)

    def _origin(self, name: str) -> dict[str, Any]:
        """Where the tensor of this name is drawn, and by which generator."""
        generator = Generator(self.drawn_on).manual_seed(mix(self.seed, self.step, name))
        return {"generator": generator, "device": self.drawn_on}


class ImageDraws(Draws):
    """The draws of sampling: one generator an image, so that image i depends on generator i alone."""

    def __init__(self, generators: list[Generator], device: torch.device | str = "cpu"):
        self.generators, self.device = generators, torch.device(device)
        self.seeds = [generator.initial_seed() for generator in generators]

    @classmethod
    def from_seeds(cls, seeds: list[int], device: torch.device | str = "cpu") -> "ImageDraws":
        """Generators on the CPU, so that a seed means the same image on every device."""
        return cls([Generator().manual_seed(seed) for seed in seeds], device)

    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        rows = [torch.randn(shape, generator=g, device=g.device) for g in self.generators]
        return torch.stack([row.to(self.device) for row in rows])

    def uniform(self, name: str, shape: tuple[int, ...] = ()) -> Tensor:
        rows = [torch.rand(shape, generator=g, device=g.device) for g in self.generators]
        return torch.stack([row.to(self.device) for row in rows])


class GivenDraws(Draws):
    """Draws that are stated by name: reference values, and a user's own starting latents.

    A name that is not given goes to `otherwise`; without one it is an error.
    """

    def __init__(self, given: dict[str, Tensor], otherwise: Draws | None = None):
        self.given, self.otherwise = given, otherwise
        self.batch = otherwise.batch if otherwise is not None else None
        self.step = otherwise.step if otherwise is not None else None
        self.seeds = otherwise.seeds if otherwise is not None else None

    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return self._take(name, shape) if name in self.given else self._pass_on(name).normal(name, shape)

    def uniform(self, name: str, shape: tuple[int, ...] = ()) -> Tensor:
        return self._take(name, shape) if name in self.given else self._pass_on(name).uniform(name, shape)

    def _take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        value = self.given[name]
        if tuple(value.shape[1:]) != tuple(shape):
            raise ValueError(f"{name} is {list(value.shape)}; each image needs {list(shape)}")
        return value

    def _pass_on(self, name: str) -> Draws:
        if self.otherwise is None:
            raise KeyError(f"no draw named {name!r} was given; there are {', '.join(self.given)}")
        return self.otherwise


class PartDraws(Draws):
    """The draws of one of several parts of a model that are alike: another's, under names of the part's own."""

    def __init__(self, draws: Draws, part: str):
        self.draws, self.part, self.batch, self.step = draws, part, draws.batch, draws.step

    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return self.draws.normal(f"{self.part}.{name}", shape)

    def uniform(self, name: str, shape: tuple[int, ...] = ()) -> Tensor:
        return self.draws.uniform(f"{self.part}.{name}", shape)

    def uniform_of_all(self, name: str) -> Tensor:
        return self.draws.uniform_of_all(f"{self.part}.{name}")

    def keep_mask(self, name: str, shape: tuple[int, ...], rate: float) -> Tensor:
        return self.draws.keep_mask(f"{self.part}.{name}", shape, rate)


def scramble(z: Tensor) -> Tensor:
    """A bijection of int64 whose values look random, in place (splitmix64, as in `uniform_by_seed`)."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):  # 0xBF58.. and 0x94D0.. as int64
        z.bitwise_xor_((z >> shift).bitwise_and_((1 << (64 - shift)) - 1)).mul_(factor)
    return z.bitwise_xor_((z >> 31).bitwise_and_((1 << 33) - 1))


def mix(*parts: object) -> int:
    """A 63-bit seed that is a function of `parts` and of nothing else (unlike `hash`, the same in every process)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def uniform_by_seed(seeds: Tensor, name: str) -> Tensor:
    """Uniform in [0, 1), [B] float32 on the CPU: row i is a function of (seeds[i], name) alone.

    splitmix64 (Steele, Lea & Flood 2014, Figure 16) of the whole batch at once; seeds [B] are any int64.
    """
    z = seeds.to("cpu", torch.int64).numpy().view(np.uint64) ^ np.uint64(mix(name))
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return torch.from_numpy((z >> np.uint64(40)).astype(np.float32) / np.float32(2**24))

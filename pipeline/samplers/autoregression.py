"""Generating ids one token after another from a causal network: in any order, guided, and with some tokens given."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pipeline.code import Code, Condition, LatentSpec, plain_ids, stack_ids
from pipeline.draws import Draws
from pipeline.nn.tokens import Choose
from pipeline.objectives.base import OnStep, check_share
from pipeline.samplers.choice import Choice
from pipeline.samplers.guidance import Guidance, both_halves, guided_logits


class CausalNetwork(Protocol):
    """What sampling asks of a network: a memory of the tokens so far, and the ids of the next one."""

    def begin(self, batch: int, condition: Condition | None, order: Tensor | None) -> Any: ...

    def advance(self, memory: Any, ids: Tensor | None, choose: Choose) -> Tensor: ...

    def null(self, condition: Condition) -> Condition: ...


MakeOrder = Callable[[Draws, int], Tensor | None]  # (draws, tokens) -> [B, tokens] places in turn; None: row by row


def row_by_row(draws: Draws, tokens: int) -> None:
    """The order of the grid itself."""


def random_order(draws: Draws, tokens: int) -> Tensor:
    """A uniform permutation an image, [B, tokens] int64."""
    return draws.uniform("order", (tokens,)).argsort(dim=-1, stable=True)


@dataclass(frozen=True)
class Known:
    """Tokens that are given: where `kept` [B, N] is true, the token is the one of ids [B, N, codebooks]."""

    ids: Tensor
    kept: Tensor


@dataclass(frozen=True)
class TokenSampler:
    """How ids are generated, whatever from: the settings of `choice`, the guidance, and the order of the tokens."""

    choice: Choice
    guidance: Guidance = Guidance()
    order: MakeOrder = row_by_row

    def check(self, steps: int, tokens: int, vocab: int) -> None:
        """ValueError where the number of steps is not that of the tokens, or the choice does not fit the codebook."""
        if steps != tokens:
            raise ValueError(
                f"a causal network is asked once a token: codes of {tokens} tokens take {tokens} steps, not {steps};"
                " leave the number of steps out"
            )
        self.choice.validate(vocab)

    def sample(
        self,
        network: CausalNetwork,
        condition: Condition | None,
        spec: LatentSpec,
        draws: Draws,
        on_step: OnStep | None = None,
    ) -> Code:
        """A code from nothing but the condition; image i depends on row i of the draws alone."""
        uniform = draws.uniform("choice", (spec.tokens, spec.codebooks))
        order = self.order(draws, spec.tokens)
        return Code(ids=plain_ids(self._generate(network, condition, uniform, order, None, on_step)))

    def regenerate(
        self, network: CausalNetwork, code: Code, condition: Condition | None, preserve: float, draws: Draws
    ) -> Code:
        """The code with each token kept with probability `preserve`, and chosen anew otherwise, given those before it.

        A kept token is told to the network in place of its choice, so that later ones follow from the mixture:
        the pairs of arXiv:2509.12474, section 4.3. With preserve = 0 it is `sample` of the same draws.
        """
        check_share(preserve)
        if preserve == 1:
            return Code(ids=code.ids.clone())
        ids = stack_ids(code.ids)
        uniform = draws.uniform("choice", tuple(ids.shape[1:]))
        order = self.order(draws, ids.shape[1])
        known = Known(ids, draws.uniform("preserved", (ids.shape[1],)) < preserve)
        return Code(ids=plain_ids(self._generate(network, condition, uniform, order, known)))

    @torch.no_grad()
    def _generate(
        self,
        network: CausalNetwork,
        condition: Condition | None,
        uniform: Tensor,
        order: Tensor | None,
        known: Known | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Ids [B, N, codebooks] in the order of the grid, each from its entry of `uniform` [B, N, codebooks].

        Guided and unguided rows are asked in one batch; once no guidance is to come, the unguided ones are left out.
        """
        batch, tokens, _ = uniform.shape
        scales = [self.guidance.at(1 - i / tokens) for i in range(tokens)]
        guided = max((i + 1 for i, scale in enumerate(scales) if scale != 1), default=0)  # so many tokens are
        request = both_halves(network, condition, self.guidance) if guided else condition
        halves = 2 if guided else 1
        memory = network.begin(halves * batch, request, order if order is None else order.repeat(halves, 1))
        ids = torch.zeros(uniform.shape, dtype=torch.int64, device=uniform.device)
        rows, last = torch.arange(batch, device=uniform.device), None
        for i, scale in enumerate(scales):
            if halves == 2 and i == guided:
                halves, last = 1, last[:batch]
                memory.narrow(batch)
            place = i if order is None else order[:, i]
            choose = self._chooser(uniform[:, i], scale, halves)
            chosen = network.advance(memory, last, choose)[:batch]  # [B, codebooks]
            if known is not None:
                chosen = torch.where(known.kept[rows, place][:, None], known.ids[rows, place], chosen)
            ids[rows, place] = chosen
            if on_step is not None:
                ids = told(on_step, i, ids, place)
                chosen = ids[rows, place]
            last = chosen.repeat(halves, 1)
        return ids

    def _chooser(self, uniform: Tensor, scale: float, halves: int) -> Choose:
        """Choose(logits [halves * B, 1, vocab], codebook) with `uniform` [B, codebooks]; both halves get the ids."""

        def choose(logits: Tensor, codebook: int) -> Tensor:
            logits = logits.float()
            logits = guided_logits(logits, scale) if halves == 2 else logits
            return self.choice(logits, uniform[:, None, codebook]).repeat(halves, 1)

        return choose


def told(on_step: OnStep, step: int, ids: Tensor, place: int | Tensor) -> Tensor:
    """Ids [B, N, codebooks] after `on_step` has seen them, with zeros where no token is yet; it may change the last.

    Raises ValueError where it changed another one, which the network has been told already or will choose itself.
    """
    tokens = ids.shape[1]
    answer = on_step(step, 1 - (step + 1) / tokens, plain_ids(ids.clone()))
    if answer is None:
        return ids
    rows, changed = torch.arange(len(ids), device=ids.device), stack_ids(answer).to(ids)
    others = torch.ones(ids.shape[:2], dtype=torch.bool, device=ids.device)
    others[rows, place] = False
    if not torch.equal(changed[others], ids[others]):
        raise ValueError("a callback may change the token of its own step; the others are chosen or yet to come")
    return changed

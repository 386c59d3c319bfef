"""Generating ids one token after another from a causal network: in any order, guided, and with some tokens given."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pipeline.code import Code, Condition, LatentSpec, plain_ids, stack_ids
from pipeline.draws import Draws
from pipeline.nn.finite import check_finite
from pipeline.nn.tokens import Choose
from pipeline.samplers.choice import LOGITS, Choice
from pipeline.samplers.guidance import guided_logits
from pipeline.samplers.original import Original
from pipeline.samplers.request import OnStep, SamplingRequest


class CausalNetwork(Protocol):
    """What sampling needs of a network: a memory of the tokens so far, and the ids of the next one."""

    def begin(
        self, batch: int, condition: Condition | None, order: Tensor | None, device: torch.device | None
    ) -> Any: ...

    def advance(self, memory: Any, ids: Tensor | None, choose: Choose) -> Tensor: ...

    def null(self, condition: Condition) -> Condition: ...


MakeOrder = Callable[[Draws, int], Tensor | None]  # (draws, tokens) -> [B, tokens] positions in turn; None: row by row


def row_by_row(draws: Draws, tokens: int) -> None:
    """The order of the grid itself."""


def random_order(draws: Draws, tokens: int) -> Tensor:
    """A uniform permutation per image, [B, tokens] int64."""
    return draws.uniform("order", (tokens,)).argsort(dim=-1, stable=True)


def kept_first(order: Tensor | None, kept: Tensor) -> Tensor | None:
    """An order of positions [B, N] with those that are kept [B, N] before the others; row by row stays as it is."""
    if order is None:
        return None
    return order.gather(1, (~kept).gather(1, order).int().argsort(dim=1, stable=True))


@dataclass(frozen=True)
class TokenSampler:
    """How ids are generated: the settings of `choice`, and the order of the tokens."""

    choice: Choice
    order: MakeOrder = row_by_row

    def check(self, steps: int, spec: LatentSpec) -> None:
        """ValueError where the number of steps is not that of the tokens, or the choice does not fit the codebook."""
        if spec.ends and self.order is not row_by_row:
            raise ValueError("rows that end early are made from their first token on; take the objective next_token")
        if steps != spec.tokens:
            raise ValueError(
                f"a causal network is called once per token: codes of {spec.tokens} tokens take {spec.tokens} steps,"
                f" not {steps}; leave the number of steps out"
            )
        self.choice.validate(spec.vocab)

    def sample(self, request: SamplingRequest) -> Code:
        """A code from nothing but the condition; image i depends on row i of the draws alone."""
        self.check(request.steps, request.spec)
        return Code(ids=plain_ids(self._generate(request)))

    def regenerate(self, request: SamplingRequest, original: Original) -> Code:
        """The code with each token preserved with probability `preserve`, and else chosen anew, given those before it.

        A preserved token is fed to the network in place of its choice, so that later ones follow from the mixture:
        the pairs of arXiv:2509.12474, section 4.3. With preserve = 0 it is `sample` of the same draws. Kept tokens are
        fed so as well; in a random order they come first, so that all others follow from them.
        """
        self.check(request.steps, request.spec)
        if original.stays_whole:
            return original.copy()
        return Code(ids=plain_ids(self._generate(request, original)))

    @torch.no_grad()
    def _generate(self, request: SamplingRequest, original: Original | None = None) -> Tensor:
        """Ids [B, N, codebooks] in the order of the grid, each by its uniform number, or that of the original.

        Rows that end do not begin with the end, and nothing else follows it, be it of the original.
        Guided and unguided rows are asked in one batch; once no guidance is to come, the unguided ones are left out.
        """
        network, tokens = request.network, request.spec.tokens
        uniform = request.draws.uniform("choice", (tokens, request.spec.codebooks))
        order, batch = self.order(request.draws, tokens), len(uniform)
        if original is not None:
            given, stays = stack_ids(original.code.ids), request.draws.uniform("preserved", (tokens,))
            stays = stays < original.preserve
            if original.kept is not None:
                order, stays = kept_first(order, original.kept), stays | original.kept
        scales = [request.guidance.at(1 - i / tokens) for i in range(tokens)]
        guided = max((i + 1 for i, scale in enumerate(scales) if scale != 1), default=0)  # so many tokens are
        condition = request.both_halves() if guided else request.condition
        halves = 2 if guided else 1
        orders = order if order is None else order.repeat(halves, 1)
        memory = network.begin(halves * batch, condition, orders, uniform.device)
        ids = torch.zeros(uniform.shape, dtype=torch.int64, device=uniform.device)
        rows, last = torch.arange(batch, device=uniform.device), None
        for i, scale in enumerate(scales):
            if halves == 2 and i == guided:
                halves, last = 1, last[:batch]
                memory.narrow(batch)
            position = i if order is None else order[:, i]
            never = request.spec.codes if request.spec.ends and i == 0 else None
            choose = self._chooser(uniform[:, i], scale, halves, never)
            chosen = network.advance(memory, last, choose)[:batch]  # [B, codebooks]
            if original is not None:
                chosen = torch.where(stays[rows, position][:, None], given[rows, position], chosen)
            if request.spec.ends and i:
                chosen = torch.where(ids[:, i - 1] == request.spec.codes, request.spec.codes, chosen)
            ids[rows, position] = chosen
            if request.on_step is not None:
                ids = reported(request.on_step, i, ids, position)
                chosen = ids[rows, position]
            last = chosen.repeat(halves, 1)
        return ids

    def _chooser(self, uniform: Tensor, scale: float, halves: int, never: int | None = None) -> Choose:
        """Choose(logits [halves * B, 1, vocab], codebook) with `uniform` [B, codebooks]; both halves get the ids.

        For all codebooks at once: logits [halves * B, 1, codebooks, vocab] and a slice of them. The id `never` is not
        chosen.
        """

        def choose(logits: Tensor, codebook: int | slice) -> Tensor:
            logits = logits.float()
            logits = guided_logits(logits, scale) if halves == 2 else logits
            if never is not None:
                logits = logits.index_fill(-1, torch.tensor(never, device=logits.device), -torch.inf)
            check_finite(logits.amax(dim=-1), LOGITS)  # an id may have no chance, at minus infinity
            return torch.cat([self.choice(logits, uniform[:, None, codebook])] * halves)

        return choose


def reported(on_step: OnStep, step: int, ids: Tensor, position: int | Tensor) -> Tensor:
    """Ids [B, N, codebooks] after `on_step` has seen them, with zeros where no token is yet; it may change the last.

    Raises ValueError where it changed another one, which the network was given already or will choose itself.
    """
    tokens = ids.shape[1]
    answer = on_step(step, 1 - (step + 1) / tokens, plain_ids(ids.clone()))
    if answer is None:
        return ids
    rows, changed = torch.arange(len(ids), device=ids.device), stack_ids(answer).to(ids)
    others = torch.ones(ids.shape[:2], dtype=torch.bool, device=ids.device)
    others[rows, position] = False
    if not torch.equal(changed[others], ids[others]):
        raise ValueError("a callback may change the token of its own step; the others are chosen or yet to come")
    return changed

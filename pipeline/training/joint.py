"""The task of training a tokenizer and a generator together: the tokenizer learns what the generator aligns best."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from pipeline.checks.joint_training import check_alignment
from pipeline.code import Code, Condition
from pipeline.critics.base import Critic
from pipeline.draws import StepDraws
from pipeline.latents.code_source import CodeBatch
from pipeline.losses.base import Loss
from pipeline.nn.running_norm import RunningNorm
from pipeline.recipes.tokenizer_training import Phase
from pipeline.tokenizers.base import Tokenizer, TokenizerOutput
from pipeline.training.adversarial_game import frozen_judge
from pipeline.training.generation import Generation
from pipeline.training.loss_heads import detach_heads
from pipeline.training.reconstruction import Reconstruction
from pipeline.validation import at


class NormalisedGenerator(nn.Module):
    """A generator's player with the normalisation of the codes that it reads, so that both are saved."""

    def __init__(self, player: nn.Module, norm: RunningNorm):
        super().__init__()
        self.player, self.norm = player, norm

    def forward(self, *inputs: Any, **options: Any) -> Any:
        return self.player(*inputs, **options)


class JointTraining(Reconstruction):
    """REPA-E: Leng et al., arXiv:2504.10483, section 3. Three turns on one batch, with the same times and noise.

    1. The tokenizer: the terms of its phase, and the generator's losses of hidden states with the weights `alignment`,
       through a generator that is frozen and in evaluation mode. The objective's own terms do not reach the tokenizer,
       which would lower them by encoding fewer details.
    2. The critic, as in `Reconstruction`.
    3. The network, as in `Generation`, on the same codes without their gradient.

    `norm` brings codes to unit scale: in 1 by its running statistics, in 3 by the batch's, which move the running ones.
    The teachers run once per batch.
    """

    judges = ("critic", "network")

    def __init__(
        self,
        tokenizer: Tokenizer,
        phase: Phase,
        losses: dict[str, Loss],
        critic: Critic | None,
        generation: Generation,
        norm: RunningNorm,
        alignment: dict[str, float],
    ):
        with at("joint"):
            check_alignment(alignment, phase, generation.losses)
        super().__init__(tokenizer, phase, losses, critic)
        self.generation, self.norm, self.alignment = generation, norm, alignment
        self.players["network"] = NormalisedGenerator(generation.players["network"], norm)
        generation.players = self.players  # one mapping, in which the loop puts its wrappers
        self.z: Tensor | None = None  # [B, N, C], of the last pass

    def trained(self, averages: Mapping[str, nn.Module]) -> tuple[nn.Module, nn.Module]:
        """The players' averages of tokenizer and network, the tokenizer's scale that which the network knows."""
        tokenizer, generator = averages["tokenizer"], averages["network"]
        inner, _ = detach_heads(tokenizer)
        inner.mean.copy_(generator.norm.mean), inner.std.copy_(generator.norm.std)
        return tokenizer, generator.player

    def beside(self) -> list[nn.Module]:
        return [*super().beside(), *self.generation.beside()]

    def turns(self, batch: Any, draws: StepDraws, step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """The tokenizer's turn, the critic's from its start, and the network's."""
        network, losses = self.generation.network, self.generation.losses
        condition = network.select(batch.condition)
        features = {term: loss.tap(batch.images, loss.grid) for term, loss in losses.items()}
        for player, terms in super().turns(batch, draws, step):
            yield player, terms | self.alignment_terms(condition, features, draws) if player == "tokenizer" else terms
        code = Code(z=self.norm(self.z.detach()))
        yield from self.generation.turns(CodeBatch(code, condition=condition, features=features), draws, step)
        self.metrics |= self.generation.metrics

    def held_out_terms(self, averages: Mapping[str, nn.Module], batch: Any, draws: StepDraws) -> dict[str, Tensor]:
        """The tokenizer's, and the network's on the codes of the averaged tokenizer at the average scale."""
        terms = super().held_out_terms(averages, batch, draws)
        tokenizer, generator = averages["tokenizer"], averages["network"]
        code = Code(z=generator.norm(self.rebuild_by(tokenizer, batch, draws).code.z))
        condition = self.generation.network.select(batch.condition)
        inner = {"network": generator.player}
        return terms | self.generation.held_out_terms(inner, CodeBatch(code, condition=condition), draws)

    def rebuild(self, batch: Any, draws: StepDraws, step: int) -> TokenizerOutput:
        rebuilt = super().rebuild(batch, draws, step)
        self.z = rebuilt.code.z
        return rebuilt

    def alignment_terms(
        self, condition: Condition | None, features: dict[str, Tensor], draws: StepDraws
    ) -> dict[str, Tensor]:
        """The weighted terms of the generator's losses, whose gradient goes to the code alone."""
        objective = self.generation.objective
        with frozen_judge(self.players["network"]) as generator:
            generator.eval()
            code = Code(z=generator.norm(self.z))
            inputs = objective.denoiser_input(code, condition, objective.draw(code, draws))
            _, states = generator(*inputs, predict=False)
            generator.train()
        terms = {}
        for term, loss in self.generation.losses.items():
            terms |= loss.compare(states[term], features[term])
        return {term: self.alignment[term] * value for term, value in terms.items()}

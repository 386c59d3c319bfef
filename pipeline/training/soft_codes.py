"""The task of training a tokenizer of ids and a generator together, which reads soft codes until they are ids."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from pipeline.bottlenecks.base import Bottleneck
from pipeline.checks.joint_training import check_soft_codes
from pipeline.code import Code, Condition
from pipeline.critics.base import Critic
from pipeline.draws import StepDraws
from pipeline.latents.code_source import CodeBatch
from pipeline.losses.base import Loss
from pipeline.nn.code_usage import CodeUsage
from pipeline.nn.full_precision import full_precision
from pipeline.nn.soft_codes import mix_codes
from pipeline.recipes.joint_training import JointTraining as Section
from pipeline.recipes.joint_training import SoftCodes
from pipeline.recipes.tokenizer_training import Phase
from pipeline.tokenizers.base import Perturb, Tokenizer, TokenizerOutput
from pipeline.training.adversarial_game import frozen_judge
from pipeline.training.generation import Generation
from pipeline.training.reconstruction import Reconstruction
from pipeline.validation import at


class SoftCodeTraining(Reconstruction):
    """Three turns on one batch, with the same draws; after UniGRec's soft identifiers.

    1. The tokenizer: the terms of its phase, and those of the objective with the weights `alignment`, through a
       generator that is frozen, in evaluation mode, and reads mixtures of codes; its targets are the ids.
    2. The critic, as in `Reconstruction`.
    3. The network: the terms of the objective on the same mixtures without their gradient.

    The temperature of the mixtures falls by `soft`; at 0 the generator reads ids, and its terms no longer reach the
    tokenizer. The decoder always reads the code vectors of the ids.
    """

    judges = ("critic", "network")

    def __init__(
        self,
        tokenizer: Tokenizer,
        phase: Phase,
        losses: dict[str, Loss],
        critic: Critic | None,
        generation: Generation,
        soft: SoftCodes,
        alignment: dict[str, float],
        usage: CodeUsage | None = None,
    ):
        with at("joint"):
            section = Section(phase, alignment, soft)
            check_soft_codes(section, generation.objective, generation.network, tokenizer, bool(generation.losses))
        super().__init__(tokenizer, phase, losses, critic, usage)
        self.generation, self.soft, self.alignment = generation, soft, alignment
        self.players["network"] = generation.players["network"]
        generation.players = self.players  # one mapping, in which the loop puts its wrappers
        self.ids: Tensor | None = None  # [B, N], of the last pass
        self.mixture: Tensor | None = None  # [B, N, 1, V], of the last pass; None where ids are read

    def turns(self, batch: Any, draws: StepDraws, step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """The tokenizer's turn, the critic's from its start, and the network's."""
        condition = self.generation.network.select(batch.condition)
        for player, terms in super().turns(batch, draws, step):
            yield player, terms | self.generator_terms(condition, draws) if player == "tokenizer" else terms
        network = self.players["network"]
        network = network if self.mixture is None else MixtureReader(network, self.mixture.detach())
        terms = self.generation.objective_terms(network, self.codes(condition), draws)
        yield "network", {name: self.generation.weights[name] * value for name, value in terms.items()}

    def held_out_terms(self, averages: Mapping[str, nn.Module], batch: Any, draws: StepDraws) -> dict[str, Tensor]:
        """The tokenizer's, and the network's on the ids of the averaged tokenizer."""
        terms = super().held_out_terms(averages, batch, draws)
        code = Code(ids=self.rebuild_by(averages["tokenizer"], batch, draws).code.ids)
        condition = self.generation.network.select(batch.condition)
        return terms | self.generation.held_out_terms(averages, CodeBatch(code, condition=condition), draws)

    def trained(self, averages: Mapping[str, nn.Module]) -> tuple[nn.Module, nn.Module]:
        """The players' averages of tokenizer and network."""
        return averages["tokenizer"], averages["network"]

    def codes(self, condition: Condition | None) -> CodeBatch:
        return CodeBatch(Code(ids=self.ids), condition=condition)

    def rebuild(self, batch: Any, draws: StepDraws, step: int, **arguments: Any) -> TokenizerOutput:
        rebuilt = super().rebuild(batch, draws, step, **arguments)
        self.ids = rebuilt.code.ids
        return rebuilt

    def perturb_of(self, draws: StepDraws, step: int) -> Perturb:
        temperature, perturb = self.soft.temperature(step), super().perturb_of(draws, step)
        self.mixture = None

        def mix(neck: Bottleneck, h: Tensor, code: Code) -> Tensor:
            if temperature:
                with full_precision(h):
                    self.mixture = mix_codes(neck.latents(h.float()), neck.rows(), temperature)[:, :, None]
            return code.z if perturb is None else perturb(neck, h, code)

        return mix

    def generator_terms(self, condition: Condition | None, draws: StepDraws) -> dict[str, Tensor]:
        """The weighted terms of the objective, whose gradient goes to the mixture alone; none where ids are read."""
        if self.mixture is None:
            return {}
        with frozen_judge(self.players["network"]) as generator:
            generator.eval()
            terms = self.generation.objective_terms(
                MixtureReader(generator, self.mixture), self.codes(condition), draws
            )
            generator.train()
        return {name: self.alignment[name] * value for name, value in terms.items()}


class MixtureReader:
    """A network as an objective calls it, which reads a mixture [B, N, 1, V] in place of the ids."""

    def __init__(self, network: nn.Module, mixture: Tensor):
        self.network, self.mixture = network, mixture
        self.config = getattr(network, "module", network).config

    def __call__(self, ids: Tensor, *inputs: Any, **options: Any) -> Tensor:
        return self.network(self.mixture, *inputs, **options)

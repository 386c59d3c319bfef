"""What an accumulated training computes over each micro-batch where it would over the whole batch."""

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.components import Node, check
from pipeline.recipes.derived import DERIVED
from pipeline.recipes.loops import Loop
from pipeline.recipes.schema import Recipe
from pipeline.recipes.tokenizer_training import Phase


@dataclass(frozen=True)
class MicroBatches:
    """A training whose result depends on `loop.accumulate`."""

    place: str  # name of its loop: generator.loop
    accumulate: int
    images: int  # of a micro-batch
    statistics: tuple[str, ...]  # what is computed over so many images together

    def __str__(self) -> str:
        return (
            f"{self.place}.accumulate={self.accumulate} computes over {self.images} images at a time, not over the"
            f" whole batch: {', '.join(self.statistics)}"
        )


def dependent_on_accumulation(recipe: Recipe, section: str = "") -> list[MicroBatches]:
    """The trainings of a recipe that accumulate, and compute something over all images of a batch together.

    All others train the same model up to rounding whatever `loop.accumulate` is. Those of one `section` where it is
    named: tokenizer, joint, generator, posttrain.
    """
    dependent = []
    for place, loop, statistics in trainings(recipe):
        if place.startswith(section) and loop.accumulate > 1 and statistics:
            each = loop.batch // loop.accumulate
            dependent.append(MicroBatches(place, loop.accumulate, each, tuple(dict.fromkeys(statistics))))
    return dependent


def trainings(recipe: Recipe) -> Iterator[tuple[str, Loop, list[str]]]:
    """Of every training of a recipe the name of its loop, the loop, and its statistics of a batch."""
    model = recipe.tokenizer.model
    for name, phase in recipe.tokenizer.phases.items():
        yield f"tokenizer.phases.{name}.loop", phase.loop, statistics_of(phase, model)
    if recipe.joint is not None:
        phase = recipe.joint.phase
        statistics = [*statistics_of(phase, model), *of_losses(recipe.generator.losses), "the moments of codes"]
        yield "joint.phase.loop", phase.loop, statistics
    if recipe.generator is not None:
        yield "generator.loop", recipe.generator.loop, of_losses(recipe.generator.losses)
    if recipe.posttrain is not None:
        phase = recipe.posttrain.phase
        yield "posttrain.phase.loop", phase.loop, statistics_of(phase, None)


def statistics_of(phase: Phase, tokenizer: Node | None) -> list[str]:
    """Those of a phase; `tokenizer` is None where its encoder and its bottleneck do not take part."""
    statistics = [] if tokenizer is None else of_component("tokenizers", tokenizer)
    statistics += of_losses(phase.losses)
    statistics += [f"the balanced weight of {term}" for term in phase.balance]
    if (adversary := phase.adversary) is not None:
        statistics += of_component("critics", adversary.critic)
        statistics += ["the adaptive weight of the adversarial term"] if adversary.adaptive else []
        statistics += ["LeCam's running means"] if adversary.lecam else []
        statistics += ["what the critic learns from, rebuilt before the update"] if adversary.rebuild else []
    return statistics


def of_losses(losses: dict[str, Node]) -> list[str]:
    return [part for node in losses.values() for part in of_component("losses", node)]


def of_component(slot: str, node: Node) -> list[str]:
    """What a component computes over all images of a batch together."""
    cls, arguments = check(slot, node, DERIVED[slot])
    return list(cls.batch_statistics(arguments))

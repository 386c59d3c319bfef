"""What a recipe takes from elsewhere, by place: nodes of losses and critics, and models that trainings begin with."""

from collections.abc import Iterator

from pipeline.components import Node, check
from pipeline.recipes.building import find_tokenizer
from pipeline.recipes.derived import DERIVED
from pipeline.recipes.schema import Recipe
from pipeline.recipes.tokenizer_training import Phase
from pipeline.vision.named_model import NamedModel


def nodes_of(recipe: Recipe) -> Iterator[tuple[str, str, Node]]:
    """Slot, place and node of every loss and critic."""
    phases: dict[str, Phase] = {f"tokenizer.phases.{name}": phase for name, phase in recipe.tokenizer.phases.items()}
    phases |= {} if recipe.joint is None else {"joint.phase": recipe.joint.phase}
    phases |= {} if recipe.posttrain is None else {"posttrain.phase": recipe.posttrain.phase}
    for place, phase in phases.items():
        for name, node in phase.losses.items():
            yield "losses", f"{place}.losses.{name}", node
        if phase.adversary is not None:
            yield "critics", f"{place}.adversary.critic", phase.adversary.critic
    for name, node in recipe.hidden_losses.items():
        yield "losses", f"generator.losses.{name}", node


def named_models(recipe: Recipe) -> Iterator[tuple[str, NamedModel]]:
    """Every model that a part of the recipe has its first weights from, by its place."""
    cls, arguments = find_tokenizer(recipe)
    for name, model in cls.named_models(arguments).items():
        yield f"tokenizer.model.{name}", model
    if recipe.text is not None:
        encoder, arguments = check("text_encoders", recipe.text.encoder, DERIVED["text_encoders"], "text.encoder")
        for name, model in encoder.named_models(arguments).items():
            yield f"text.encoder.{name}", model
    if recipe.tokenizer.start is not None:
        yield "tokenizer.start", NamedModel(recipe.tokenizer.start)
    if recipe.joint is not None and recipe.joint.critic is not None:
        yield "joint.critic", NamedModel(recipe.joint.critic)
    generator = recipe.generator
    if generator is not None and generator.start is not None and not generator.starts_joint:
        yield "generator.start", NamedModel(generator.start.folder)
        if generator.start.tokenizer is not None:
            yield "generator.start.tokenizer", NamedModel(generator.start.tokenizer)
    for slot, place, node in nodes_of(recipe):
        if slot == "losses":
            loss, arguments = check(slot, node, DERIVED[slot], place)
            for name, model in loss.named_models(arguments).items():
                yield f"{place}.{name}", model

"""Whether the finished line can be sampled as a recipe asks: its sampler's settings and its guidance."""

from pathlib import Path

from pipeline.code import LatentSpec
from pipeline.objectives.base import Objective
from pipeline.recipes.building import reads_captions
from pipeline.recipes.sampling import HELD_OUT, Sampling
from pipeline.recipes.schema import Recipe
from pipeline.samplers.guidance import Guidance
from pipeline.sampling.prompt_files import read_prompt_set
from pipeline.sampling.weak_network import check_weak_folder
from pipeline.validation import SettingError, at


def check_sampling(recipe: Recipe, spec: LatentSpec, objective: Objective) -> None:
    """ValueError where a setting does not fit the objective, or guidance has nothing to lead away from."""
    sample = recipe.sample
    settings = objective.read_settings(sample.sampler, "sample.sampler")
    with at("sample.sampler"):
        objective.check_sampler(objective.steps_for(spec, sample.steps), spec, settings)
    with at("sample.guidance"):
        check_guidance(sample.guidance, spec)
    check_prompts(recipe)
    if sample.decoder is not None:
        check_decoder(recipe)
    if objective.class_token and sample.guidance.channels is not None:
        raise SettingError("sample.guidance.channels", ": with a class token all channels are guided; leave it out")
    if sample.guidance.class_token is not None and not objective.class_token:
        raise SettingError("sample.guidance.class_token", ": this objective has no class token; leave it out")
    if sample.weak is not None:
        check_weak(recipe, objective)
    elif sample.guidance.scale != 1:
        check_unconditional(recipe)


def check_prompts(recipe: Recipe) -> None:
    """ValueError where prompts are stated that nothing reads, or cannot be read, or a negative one has no effect."""
    sample = recipe.sample
    reads = reads_captions(recipe, "samples")
    for name in [name for name in ("prompts", "negative_prompt") if getattr(sample, name) != getattr(Sampling(), name)]:
        if not reads:
            raise SettingError(f"sample.{name}", ": this line reads no text; leave it out")
    if reads and sample.prompts != HELD_OUT:
        with at("sample.prompts"):
            read_prompt_set(sample.prompts)
    if sample.negative_prompt is None:
        return
    if not recipe.generator.reads_text:
        raise SettingError("sample.negative_prompt", ": the generator reads no text, its tokenizer alone; leave it out")
    if sample.guidance.scale == 1 or sample.weak is not None:
        why = "sample.weak is led away from" if sample.weak is not None else "sample.guidance is 1"
        raise SettingError("sample.negative_prompt", f" has no effect where {why}; leave it out")


def check_decoder(recipe: Recipe) -> None:
    """ValueError unless post-training keeps the decoder of sample.decoder."""
    milestones, step = () if recipe.posttrain is None else recipe.posttrain.milestones, recipe.sample.decoder.step
    if recipe.posttrain is None:
        raise SettingError("sample.decoder", " is one of post-training, and posttrain is null; leave it out")
    if step not in milestones:
        remedy = f"set posttrain.milestones={[*milestones, step]}"
        raise SettingError("sample.decoder.step", f"={step} is not kept by post-training; {remedy}")


def check_guidance(guidance: Guidance, spec: LatentSpec) -> None:
    """ValueError where a setting of the guidance is not for such codes."""
    if spec.vocab and (guidance.channels is not None or guidance.rescale):
        name = "rescale" if guidance.channels is None else "channels"
        raise SettingError(name, " is for continuous codes, and this tokenizer gives ids; leave it out")
    if guidance.channels is not None and guidance.channels > spec.dim:
        raise SettingError("channels", f" is {guidance.channels}, and codes have {spec.dim}; give at most {spec.dim}")


def check_unconditional(recipe: Recipe) -> None:
    """ValueError unless the network learns the unconditional prediction, which classifier-free guidance needs."""
    given = f" is {recipe.sample.guidance.scale:g}, but"
    if recipe.generator.condition == "none":
        raise SettingError(
            "sample.guidance",
            f"{given} generator.condition is none, so there is nothing to guide away from; set sample.guidance=1, or"
            " give sample.weak",
        )
    if recipe.generator.network.get("condition_drop") == 0:
        raise SettingError(
            "sample.guidance",
            f"{given} generator.network.condition_drop is 0, so the network never learns the unconditional prediction;"
            " set condition_drop=0.1 or sample.guidance=1",
        )


def check_weak(recipe: Recipe, objective: Objective) -> None:
    """ValueError where the network of sample.weak cannot guide, or would not be used."""
    weak, milestones = recipe.sample.weak, recipe.generator.milestones
    if not objective.autoguided:
        raise SettingError(
            "sample.weak", f" is for continuous codes, and {type(objective).__name__} models ids; leave it out"
        )
    if recipe.sample.guidance.scale == 1:
        raise SettingError("sample.weak", " is not used at sample.guidance=1; set another guidance, or leave it out")
    if weak.step is not None and weak.step not in milestones:
        remedy = f"set generator.milestones={[*milestones, weak.step]}"
        raise SettingError("sample.weak.step", f"={weak.step} is not kept by training; {remedy}")
    if weak.folder is not None:
        check_weak_folder(Path(weak.folder), objective)

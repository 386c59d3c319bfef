"""What the previews of each training of a recipe are made of; nothing where its loop asks for none."""

from collections.abc import Callable, Mapping
from copy import deepcopy

from torch import nn

from pipeline.captions.table import open_captions
from pipeline.images.reading import Images
from pipeline.latent_pipeline import LatentPipeline
from pipeline.latents.encoded_images import open_images
from pipeline.objectives.base import Objective
from pipeline.recipes.loops import Loop
from pipeline.recipes.schema import Recipe
from pipeline.runs.training_folders import training_folder
from pipeline.runs.workspace import Workspace
from pipeline.sampling.many_images import sampling_record
from pipeline.tokenizers.base import Tokenizer
from pipeline.training.held_out import Rows
from pipeline.training.held_out_codes import HeldOutCodes
from pipeline.training.loss_heads import detach_heads
from pipeline.training.pairs import Pairs
from pipeline.training.preview_pictures import Both, DecodedPairs, ReconstructedImages, Samples
from pipeline.training.previews import PreviewSources

Trained = Callable[[Mapping[str, nn.Module]], tuple[nn.Module, nn.Module]]  # averages -> players of tokenizer, network


def sources_of_phase(recipe: Recipe, work: Workspace, images: Images, phase: str) -> PreviewSources | None:
    """Of a phase of the tokenizer: `images` it is trained on, and held-out ones."""
    training = training_folder(recipe, f"tokenizer.phases.{phase}")
    if not asks_for_previews(training.loop):
        return None
    held_out = Images(recipe.data, "held_out", open_captions(recipe, work.artefact, "held_out", "tokenizer"))
    draw = ReconstructedImages(held_out, recipe.precision.tokenizer, work.accelerator.device)
    return PreviewSources(training.title, images, held_out, draw, work.root / training.pictures)


def sources_of_generator(recipe: Recipe, work: Workspace, codes: Rows, objective: Objective) -> PreviewSources | None:
    """Of the generator: codes it is trained on, those of held-out images, and samples that the tokenizer decodes."""
    training = training_folder(recipe, "generator")
    if not asks_for_previews(training.loop):
        return None
    train = Images(recipe.data, "train")
    captions = open_captions(recipe, work.artefact, "held_out", "generator")
    held_out = open_images(work.artefact("latents"), recipe, work.accelerator, "held_out", captions)
    tokenizer = held_out.encoder.tokenizer

    def assemble(averages: Mapping[str, nn.Module]) -> LatentPipeline:
        return pipeline_of(recipe, tokenizer, detach_heads(averages["network"])[0], objective, train.class_names)

    draw = Samples(assemble, train, held_out.images, recipe.seed, recipe.precision.sample, captions)
    return PreviewSources(training.title, codes, HeldOutCodes(held_out), draw, work.root / training.pictures)


def sources_of_joint_training(
    recipe: Recipe, work: Workspace, images: Images, objective: Objective, trained: Trained
) -> PreviewSources | None:
    """Of joint training: images, reconstructions, and samples by what is `trained`."""
    training = training_folder(recipe, "joint")
    if not asks_for_previews(training.loop):
        return None
    captions, device = open_captions(recipe, work.artefact, "held_out", "joint"), work.accelerator.device
    held_out = Images(recipe.data, "held_out", captions)

    def assemble(averages: Mapping[str, nn.Module]) -> LatentPipeline:
        players = trained({**averages, "tokenizer": deepcopy(averages["tokenizer"])})
        tokenizer, network = (detach_heads(player)[0] for player in players)
        return pipeline_of(recipe, tokenizer, network, objective, images.class_names)

    reconstructions = ReconstructedImages(held_out, recipe.precision.joint, device)
    samples = Samples(assemble, images, held_out, recipe.seed, recipe.precision.sample, captions)
    draw = Both(reconstructions, samples)
    return PreviewSources(training.title, images, held_out, draw, work.root / training.pictures)


def sources_of_decoder(recipe: Recipe, work: Workspace, pairs: Pairs, held_out: Pairs) -> PreviewSources | None:
    """Of post-training: pairs it is trained on, and those held out."""
    training = training_folder(recipe, "posttrain")
    if not asks_for_previews(training.loop):
        return None
    draw = DecodedPairs(held_out, recipe.precision.posttrain, work.accelerator.device)
    return PreviewSources(training.title, pairs, held_out, draw, work.root / training.pictures)


def asks_for_previews(loop: Loop) -> bool:
    return bool(loop.steps and (loop.preview_every or loop.early_stop))


def pipeline_of(
    recipe: Recipe, tokenizer: Tokenizer, network: nn.Module, objective: Objective, class_names: list[str]
) -> LatentPipeline:
    """A pipeline that samples as the recipe says; without guidance where the weak network is still to be made."""
    sampling = sampling_record(recipe)
    if recipe.sample.weak is not None:
        sampling |= {"weak": None, "guidance": sampling["guidance"] | {"scale": 1.0}}
    names = dict(enumerate(class_names if network.config.num_classes else []))
    return LatentPipeline(tokenizer, network, objective, id2label=names, sampling=sampling).to(tokenizer.device)

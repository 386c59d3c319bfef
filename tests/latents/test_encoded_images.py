"""Codes that are encoded at every step are those that a store would hold, and train the same network."""

import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from support.tiny_pipeline import make_network, make_recipe, make_tokenizer
from torch import Tensor

from pipeline.checks.recipe import check_recipe
from pipeline.draws import StepDraws
from pipeline.files.writing import read_json
from pipeline.images.reading import Images
from pipeline.latents.code_source import CodeSource
from pipeline.latents.encoded_images import EncodedImages, open_codes, open_images
from pipeline.latents.encoding import Encoder, EncodingPlan, encode
from pipeline.latents.store import LatentStore
from pipeline.networks.diffusion_transformer import DiffusionTransformer
from pipeline.objectives.flow_matching import FlowMatching
from pipeline.recipes.latents import Latents
from pipeline.recipes.loops import Loop
from pipeline.recipes.schema import load
from pipeline.saved_folders import load_component
from pipeline.training.generation import Generation
from pipeline.training.loop import TrainingRun, train
from pipeline.validation import SettingError
from stages import encode_dataset, train_generator

CPU = torch.device("cpu")
ROWS = torch.tensor([3, 0, 200, 17, 4, 71, 3, 99])
SEEDS = torch.arange(8) * 7919
SMOOTH = {"kind": "adamw", "epsilon": 1e-2}  # with less, a gradient of rounding errors alone moves as far as any other


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def images() -> Images:
    return Images(make_recipe().data, "held_out")


def both(folder: Path, images: Images, **latents) -> tuple[LatentStore, EncodedImages]:
    """Stored codes of images, and the same encoded when they are asked for."""
    plan = EncodingPlan(Latents(precision="fp32", **latents), 5, "fp32")
    encode(make_tokenizer(), images, plan, folder, Accelerator(cpu=True))
    store = LatentStore(folder)
    return store, EncodedImages(folder, store.manifest, images, Encoder(make_tokenizer(), plan, CPU))


def trained(codes: CodeSource, folder: Path, *steps: int) -> Tensor:
    for last in steps:
        task = Generation(make_network(10), FlowMatching(), {"flow": 1.0}, encoder=codes.encoder)
        loop = Loop(steps=last, batch=8, lr={"network": 1e-3}, ema=0.5, save_every=0, optimizer=SMOOTH)
        network = train(task, codes, TrainingRun(loop, folder, 3, Accelerator(cpu=True)))["network"]
    return torch.cat([parameter.flatten() for parameter in network.parameters()])


@pytest.mark.parametrize(
    "latents", [{"posterior": "mode"}, {"posterior": "moments", "flip": True}, {"posterior": "mode", "crops": (1.25,)}]
)
def test_the_network_is_that_of_stored_codes_up_to_rounding(latents, images, tmp_path):
    store, encoded = both(tmp_path / "codes", images, **latents)
    assert store.encoder is None and len(store) == len(encoded)
    expected = trained(store, tmp_path / "stored", 2)
    torch.testing.assert_close(trained(encoded, tmp_path / "encoded", 2), expected, atol=1e-5, rtol=0)
    start = torch.cat([parameter.flatten() for parameter in make_network(10).parameters()])
    assert (expected - start).abs().max() > 1e-4, "what is compared moves"


def test_rows_in_order_are_what_a_store_holds_mirrors_and_samples_included(images, tmp_path):
    store, encoded = both(tmp_path, images, flip=True)
    for flip in (False, True):
        kept, made = store.plain(ROWS, flip), encoded.plain(ROWS, flip)
        torch.testing.assert_close(made.code.z, kept.code.z, atol=1e-5, rtol=0)
        assert torch.equal(made.condition.labels, kept.condition.labels)
    plain = replace(encoded.encoder.plan, latents=Latents())
    with pytest.raises(ValueError, match="there are no mirrors; set latents.flip=true"):
        EncodedImages(tmp_path, store.manifest, images, Encoder(make_tokenizer(), plain, CPU)).plain(ROWS, True)


def test_samples_are_drawn_at_every_step_whoever_encodes_which_part_of_the_batch(images, tmp_path):
    encoded = both(tmp_path, images)[1]
    batch = encoded.batch(ROWS, SEEDS)

    def codes(step: int, places: slice) -> Tensor:
        part = encoded.batch(ROWS[places], SEEDS[places])
        return encoded.encoder.encode(part, StepDraws(1, step, places, 8)).code.z

    whole = codes(4, slice(0, 8))
    torch.testing.assert_close(torch.cat([codes(4, slice(0, 3)), codes(4, slice(3, 8))]), whole, atol=1e-5, rtol=0)
    assert (codes(5, slice(0, 8)) - whole).abs().max() > 0.1
    moments = Encoder(make_tokenizer(), replace(encoded.encoder.plan, latents=Latents(posterior="moments")), CPU)
    made = moments.encode(batch, StepDraws(1, 4, slice(0, 8), 8))
    noise = StepDraws(1, 4, slice(0, 8), 8).normal("posterior", tuple(made.std.shape[1:]))
    torch.testing.assert_close(made.code.z + made.std * noise, whole, atol=1e-5, rtol=0)


def test_a_training_that_was_stopped_resumes_to_the_bit(images, tmp_path):
    encoded = both(tmp_path / "codes", images)[1]
    assert torch.equal(trained(encoded, tmp_path / "a", 1, 2), trained(encoded, tmp_path / "b", 2))


def test_processes_that_read_images_have_no_encoder_and_augment_them_anew(images, tmp_path):
    encoded = both(tmp_path, images)[1]
    reader = pickle.loads(pickle.dumps(encoded))
    assert reader.encoder is None and torch.equal(reader.batch(ROWS, SEEDS).images, encoded.batch(ROWS, SEEDS).images)
    data = replace(images.data, crop="random", shorter_side=24, flip=True)
    drawn = Images(data, "train")
    plan = replace(encoded.encoder.plan, latents=Latents(store=False, augment=True))
    manifest = encoded.manifest | {"data": {"fingerprint": drawn.fingerprint()}}
    augmented = EncodedImages(tmp_path, manifest, drawn, Encoder(make_tokenizer(), plan, CPU))
    batch = augmented.batch(ROWS, SEEDS)
    assert torch.equal(batch.images, drawn.batch(ROWS, SEEDS).images)
    assert (batch.images - augmented.batch(ROWS, SEEDS + 1).images).abs().max() > 0.1


def test_stages_write_the_scale_alone_and_train_the_network_of_stored_codes(tmp_path):
    make_tokenizer().save_pretrained(tmp_path / "joint")
    networks, accelerator = [], Accelerator(cpu=True)
    for store in (True, False):
        recipe = make_recipe(latents={"store": store, "posterior": "mode", "precision": "fp32"})
        recipe.generator.loop = Loop(steps=2, batch=16, lr={"network": 1e-3}, optimizer=SMOOTH)
        root = tmp_path / str(store)
        folders = {"joint": tmp_path / "joint", "latents": root / "latents"}
        work = SimpleNamespace(accelerator=accelerator, artefact=folders.__getitem__, sharding=None)
        (root / "generator").mkdir(parents=True)
        encode_dataset.run(recipe, work, root / "latents")
        train_generator.run(recipe, work, root / "generator")
        networks.append(load_component(DiffusionTransformer, root / "generator/network").state_dict())
    for name, stored in networks[0].items():
        torch.testing.assert_close(networks[1][name], stored, atol=1e-5, rtol=0)
    assert {path.name for path in (root / "latents").iterdir()} == {"manifest.json", "tokenizer"}
    one, two = (read_json(tmp_path / name / "latents/manifest.json") for name in ("True", "False"))
    assert one["mean"] == two["mean"] and one["std"] == two["std"]
    with pytest.raises(ValueError, match="holds no codes: latents.store was false; set it to true and encode"):
        LatentStore(root / "latents")
    assert isinstance(open_codes(root / "latents", recipe, accelerator), EncodedImages)
    held_out = open_images(root / "latents", recipe, accelerator, "held_out")
    assert held_out.plain(ROWS).code.z.shape == (8, 16, 3)


@pytest.mark.parametrize(
    "settings, message",
    [
        (["latents.store=false", "latents.features=true"], "latents.features are stored with the codes"),
        (["latents.augment=true"], "latents.augment is of images that are encoded at every step"),
        (
            ["latents.store=false", "latents.augment=true", "latents.flip=true"],
            "latents.augment takes crops and",
        ),
    ],
)
def test_what_needs_stored_codes_or_needs_none_is_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        load("digits", settings)


def test_rehearsal_reads_stored_codes():
    recipe = load("digits_robust_flow", ["latents.store=false", "posttrain.rehearsal=0.5"])
    with pytest.raises(SettingError, match="posttrain.rehearsal takes stored codes, and latents.store=false"):
        check_recipe(recipe)

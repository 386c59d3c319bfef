"""The store gives back what the tokenizer made, whoever wrote it, and refuses to mix two makings."""

import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import ModelMixin  # noqa: F401  (diffusers looks for it where the class is)
from diffusers.configuration_utils import register_to_config
from support.processes import start_two
from torch import Tensor, nn

from pipeline.bottlenecks.base import Bottleneck
from pipeline.checks.recipe import check_recipe
from pipeline.code import Code, LatentSpec
from pipeline.components import Arguments, build
from pipeline.images.reading import Images
from pipeline.latents.encoding import EncodingPlan, encode
from pipeline.latents.packing import bytes_of_ids, read_packed, store_ids
from pipeline.latents.scale import measure
from pipeline.latents.store import LatentStore
from pipeline.recipes.arithmetic import StagePrecision
from pipeline.recipes.data import Data
from pipeline.recipes.latents import Latents
from pipeline.recipes.schema import load
from pipeline.tokenizers.base import Tokenizer
from stages import encode_dataset

ROOT = Path(__file__).parents[2]


class Squeeze(Bottleneck):
    """A posterior with a std that depends on the image; or ids, when there is a vocabulary."""

    def __init__(self, dim: int, vocab: int):
        super().__init__()
        self.inputs = self.dim = dim
        self.vocab = vocab

    def forward(self, h, draws=None):
        if self.vocab:
            return Code(z=h, ids=((h.mean(-1) + 1) / 2 * (self.vocab - 1)).long()), {}
        mean, std = self.moments(h)
        return Code(z=mean if draws is None else mean + std * draws.normal("posterior", tuple(mean.shape[1:]))), {}

    def moments(self, h):
        return 3 * h + 5, 0.2 + h.abs()


class Patches(Tokenizer):
    """4x4 patches of an image as its code: a tokenizer small enough to know every number of."""

    @register_to_config
    def __init__(self, image_size: int = 8, vocab: int = 0):
        super().__init__(48)
        self.neck = Squeeze(48, vocab)
        self.unused = nn.Conv2d(3, 4, 3)
        self.spec = LatentSpec((image_size // 4, image_size // 4), 48, vocab)

    @classmethod
    def geometry(cls, arguments: Arguments) -> LatentSpec:
        return LatentSpec((arguments.image_size // 4,) * 2, 48)

    def features(self, images: Tensor, condition=None) -> Tensor:
        return nn.functional.unfold(images, 4, stride=4).transpose(1, 2)

    def render(self, z: Tensor, condition=None) -> Tensor:
        return nn.functional.fold(((z - 5) / 3).transpose(1, 2), (8, 8), 4, stride=4)

    @property
    def last_layer(self):
        return self.unused.weight

    def parts(self):
        return {"encoder": [self.neck], "decoder": [self.unused]}


class Process:
    """What `encode` asks of an accelerator, as process `rank` of several that take turns."""

    device = torch.device("cpu")

    def __init__(self, rank: int = 0, ranks: int = 1):
        self.process_index, self.num_processes, self.is_main_process = rank, ranks, rank == 0

    def wait_for_everyone(self):
        pass

    def reduce(self, tensor, how):
        return tensor


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Threads only wait for each other on tensors this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def images():
    source = {"kind": "digits"}
    digits = Images(Data(source, size=8), "held_out")
    digits.plain(torch.arange(len(digits)))
    return digits


def tokenizer(**arguments):
    torch.manual_seed(0)
    made = Patches(**arguments)
    made.mean.fill_(0.5), made.std.fill_(2.0)
    return made


def write(folder, images, model=None, ranks=1, seed=0, computed="fp32", **changes):
    latents = Latents(**{"shard": 100, "batch": 16, "precision": "fp32"} | changes)
    model = model or tokenizer()
    for rank in range(ranks):
        encode(model, images, EncodingPlan(latents, seed, computed), folder, Process(rank, ranks))
    return LatentStore(folder)


def everything(store, flip=False):
    return store.plain(torch.arange(len(store)), flip)


def same(a, b):
    return all(
        x is None and y is None or torch.equal(x, y)
        for x, y in ((a.code.z, b.code.z), (a.code.ids, b.code.ids), (a.std, b.std))
    )


def test_the_mode_comes_back_and_decodes_to_the_images(tmp_path, images):
    store = write(tmp_path, images, posterior="mode")
    batch = everything(store)
    assert batch.code.z.shape == (359, 4, 48) and batch.code.z.dtype == torch.float32 and batch.std is None
    every = images.plain(torch.arange(359))
    torch.testing.assert_close(tokenizer().decode(batch.code), every.images)
    assert torch.equal(batch.condition.labels, every.condition.labels)
    assert store.spec == LatentSpec((2, 2), 48) and store.class_names == list("0123456789")
    assert store.counts == [100, 100, 100, 59] and len(store) == 359
    store.verify()


def test_random_reads_equal_sequential_ones(tmp_path, images):
    store = write(tmp_path, images)
    whole, rows = everything(store), torch.tensor([358, 0, 99, 100, 0, 257])
    batch = store.batch(rows, torch.arange(6))
    assert torch.equal(batch.code.z, whole.code.z[rows])
    assert torch.equal(batch.condition.labels, whole.condition.labels[rows])
    assert same(pickle.loads(pickle.dumps(store)).batch(rows, torch.arange(6)), batch)


def test_flips_are_the_codes_of_mirrors_and_seeds_choose_them(tmp_path, images):
    store = write(tmp_path, images, posterior="mode", flip=True)
    rows = torch.arange(64)
    plain, mirror = store.plain(rows), store.plain(rows, flip=True)
    torch.testing.assert_close(tokenizer().decode(mirror.code), images.plain(rows, flip=True).images)
    batch = store.batch(rows, rows + 7)
    flipped = (batch.code.z == mirror.code.z).flatten(1).all(1)
    assert ((batch.code.z == plain.code.z).flatten(1).all(1) | flipped).all() and 16 < flipped.sum() < 48
    assert torch.equal(store.batch(rows.flip(0), rows.flip(0) + 7).code.z, batch.code.z.flip(0))
    with pytest.raises(ValueError, match="latents.flip=true"):
        write(tmp_path / "plain", images).plain(rows, flip=True)


def test_crops_are_stored_and_seeds_choose_among_the_views(tmp_path, images):
    store = write(tmp_path, images, posterior="mode", crops=(1.5, 1.25), flip=True)
    assert store.views == 20
    rows = torch.arange(40)
    views = torch.stack([batch.images for batch in images.views(rows, (1.5, 1.25), True)], 1)  # [B, 20, 3, 8, 8]
    torch.testing.assert_close(tokenizer().decode(store.plain(rows).code), views[:, 0])
    torch.testing.assert_close(tokenizer().decode(store.plain(rows, flip=True).code), views[:, 1])

    many = rows.repeat(50)
    batch = store.batch(many, torch.arange(2000) + 2**40)
    found = tokenizer().decode(batch.code)
    same_as = (found[:, None] - views[many]).abs().flatten(2).amax(2) < 1e-3  # [2000, 20]
    assert same_as.any(1).all()
    alone = same_as[same_as.sum(1) == 1].sum(0)
    assert len(same_as) - alone.sum() < 500 and alone.min() > 50 and alone.max() < 150
    turned = store.batch(many.flip(0)[:300], torch.arange(2000).flip(0)[:300] + 2**40)
    assert torch.equal(turned.code.z, batch.code.z.flip(0)[:300])
    with pytest.raises(ValueError, match="latents.flip=true"):
        write(tmp_path / "unflipped", images, crops=(1.5,)).plain(rows, flip=True)


def test_every_view_has_noise_of_its_own(tmp_path, images):
    moments, sample = (write(tmp_path / kind, images, posterior=kind, crops=(1.0,)) for kind in ("moments", "sample"))
    z, std, noisy = (
        store._opened()[0][0][name].unflatten(0, (-1, 5))[:20]
        for store, name in ((moments, "z"), (moments, "std"), (sample, "z"))
    )
    assert torch.equal(z[:, 0], z[:, 4])  # a factor of 1 gives one square five times
    noise = ((noisy - z) / std).flatten(2)
    likeness = torch.einsum("bvn,bwn->bvw", noise, noise) / noise.shape[2]
    torch.testing.assert_close(likeness, torch.eye(5).expand(20, 5, 5), atol=0.5, rtol=0)
    first = everything(write(tmp_path / "plain", images)).code.z[:20]
    torch.testing.assert_close(first, noisy[:, 0])


def test_factors_below_one_are_refused_in_one_line():
    for overrides in (["latents.crops=[1.1,0.9]"], ["latents.crops=[.nan]"]):
        with pytest.raises(ValueError, match=r"^latents.crops\[.\] is (0.9; give 1 or|nan; give a finite)"):
            check_recipe(load("digits", overrides))
    assert load("digits", ["latents.crops=[1.1,1.05]", "latents.flip=true"]).latents.views == 20


def test_samples_are_moments_and_noise_that_belongs_to_the_image(tmp_path, images):
    moments = everything(write(tmp_path / "moments", images, posterior="moments"))
    sample = everything(write(tmp_path / "sample", images, posterior="sample"))
    noise = (sample.code.z - moments.code.z) / moments.std
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    assert not torch.equal(noise[0], noise[1])
    torch.testing.assert_close(moments.std * 2, 0.2 + ((moments.code.z * 2 + 0.5 - 5) / 3).abs())
    batched = everything(write(tmp_path / "batched", images, batch=7, shard=64))
    torch.testing.assert_close(batched.code.z, sample.code.z)
    assert not torch.equal(everything(write(tmp_path / "seeded", images, seed=1)).code.z, sample.code.z)


@pytest.mark.parametrize("precision, error", [("fp16", 1e-3), ("bf16", 8e-3)])
def test_half_precisions_are_stored_as_stated(tmp_path, images, precision, error):
    exact = everything(write(tmp_path / "exact", images)).code.z
    rounded = everything(write(tmp_path / "half", images, precision=precision)).code.z
    assert rounded.dtype == torch.float32 and 0 < (rounded - exact).abs().max() < error * exact.abs().max()
    sizes = [(tmp_path / name / "codes_00000.safetensors").stat().st_size for name in ("exact", "half")]
    assert sizes[1] < 0.55 * sizes[0]


@pytest.mark.parametrize("crops", [(), (1.25,)])
@pytest.mark.parametrize("vocab, stored", [(60000, torch.uint16), (100000, torch.int32)])
def test_ids_fit_the_same_store(tmp_path, images, vocab, stored, crops):
    model = tokenizer(vocab=vocab)
    store = write(tmp_path, images, model, flip=True, crops=crops)
    batch = store.batch(torch.arange(359), torch.arange(359))
    assert batch.code.z is None and batch.code.ids.dtype == torch.int64 and batch.code.ids.max() > 32768
    assert store._opened()[0][0]["ids"].dtype == stored
    first = next(images.views(torch.arange(359), crops))
    assert torch.equal(everything(store).code.ids, model.encode(first.images).ids)
    store.verify()


def test_bits_are_stored_eight_to_a_byte(tmp_path, images):
    sizes = {"tokens": 3, "width": 12, "depth": 1, "heads": 1, "patch_size": 4}
    places = {"merge_after": [], "split_after": [], "rotary_axes": [4, 4, 4]}
    bottleneck = {"kind": "bernoulli", "dim": 4, "bits": 5}
    node = {"kind": "merging_vit", "bottleneck": bottleneck, **sizes, **places}
    model = build("tokenizers", node, image_size=8).eval()
    store = write(tmp_path, images, model, flip=True)
    spec = store.spec
    packed = store._opened()[0][0]["packed_ids"]
    assert packed.dtype == torch.uint8 and packed.shape[1] == bytes_of_ids(spec) == -(-spec.tokens * 5 // 8)
    batch = store.batch(torch.arange(359), torch.arange(359))
    assert batch.code.ids.dtype == torch.int64 and batch.code.ids.shape[1:] == (spec.tokens, 5)
    assert torch.equal(everything(store).code.ids, model.encode(next(images.views(torch.arange(359))).images).ids)
    store.verify()


@pytest.mark.parametrize("codebooks", [1, 3, 8])
def test_packed_bits_are_read_back(codebooks):
    spec = LatentSpec((7,), dim=2, vocab=2, codebooks=codebooks)
    ids = torch.randint(2, (4, 3, 7, codebooks))
    ids = ids[..., 0] if codebooks == 1 else ids
    packed = store_ids(ids, spec)["packed_ids"]
    assert packed.shape == (4, 3, bytes_of_ids(spec))
    assert all(torch.equal(read_packed(packed[:, view], spec), ids[:, view]) for view in range(3))


def test_unlabelled_images_have_no_condition(tmp_path):
    from PIL import Image

    for number in range(3):
        Image.new("L", (8, 8), number * 9).save(tmp_path / f"{number}.png")
    source = {"kind": "image_folder", "path": str(tmp_path), "held_out": 0.0}
    store = write(tmp_path / "codes", Images(Data(source, size=8), "train"))
    batch = everything(store)
    assert batch.condition is None and store.num_classes == 0 and len(batch.to("cpu")) == 3


def test_a_stopped_writing_goes_on_and_keeps_what_is_done(tmp_path, images):
    whole = everything(write(tmp_path / "whole", images))
    write(tmp_path / "begun", images)
    for number in (1, 3):
        (tmp_path / f"begun/codes_{number:05d}.safetensors").unlink()
    with pytest.raises(ValueError, match="not finished: codes_00001.safetensors is missing"):
        LatentStore(tmp_path / "begun")
    times = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "begun").glob("codes_*")}
    assert same(everything(write(tmp_path / "begun", images)), whole)
    assert all((tmp_path / "begun" / name).stat().st_mtime_ns == time for name, time in times.items())
    assert not list((tmp_path / "begun").glob(".*"))


def test_processes_share_the_shards(tmp_path, images):
    one, three = write(tmp_path / "one", images), write(tmp_path / "three", images, ranks=3)
    assert same(everything(one), everything(three))
    assert (tmp_path / "one/manifest.json").read_text() == (tmp_path / "three/manifest.json").read_text()


def other_weights():
    model = tokenizer()
    with torch.no_grad():
        model.unused.weight[0, 0, 0, 0] += 1e-3
    return model


@pytest.mark.parametrize(
    "name, change",
    [
        ("posterior", {"posterior": "mode"}),
        ("flip", {"flip": True}),
        ("crops", {"crops": (1.5,)}),
        ("stored", {"precision": "bf16"}),
        ("computed", {"computed": "bf16"}),
        ("seed", {"seed": 3}),
        ("shards", {"shard": 50}),
        ("tokenizer.weights", {"model": other_weights}),
        ("tokenizer.config.vocab", {"model": lambda: tokenizer(vocab=9)}),
        ("data.fingerprint", {"images": lambda: Images(Data({"kind": "digits"}, size=8), "train")}),
    ],
)
def test_a_stale_folder_is_refused_by_name(tmp_path, images, name, change):
    write(tmp_path, images)
    change = {key: value() if callable(value) else value for key, value in change.items()}
    with pytest.raises(ValueError, match=rf"holds codes made with {name} .*, not .*; delete it"):
        write(tmp_path, **{"images": images} | change)


def test_damage_is_found(tmp_path, images):
    store = write(tmp_path, images)
    file = tmp_path / "codes_00001.safetensors"
    content = bytearray(file.read_bytes())
    content[-5000] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="codes_00001.safetensors is damaged or of another store"):
        store.verify()
    file.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="codes_00001.safetensors is damaged"):
        store.verify()
    with pytest.raises(ValueError, match="holds no codes"):
        LatentStore(tmp_path / "nothing")


def test_a_damaged_shard_is_made_again_where_encoding_continues(tmp_path, images, capsys):
    contents = {file: file.read_bytes() for file in [*write(tmp_path, images).folder.glob("codes_*")]}
    file = tmp_path / "codes_00001.safetensors"
    flipped = bytearray(contents[file])
    flipped[-5000] ^= 1
    for damaged in (flipped, flipped[:-1], b""):
        file.write_bytes(damaged)
        write(tmp_path, images)
        assert f"{file} is damaged" in capsys.readouterr().out
        assert {file: file.read_bytes() for file in contents} == contents, "to the bit, metadata too"


def test_a_shard_in_the_place_of_another_is_refused(tmp_path, images):
    write(tmp_path, images)
    one, two = tmp_path / "codes_00000.safetensors", tmp_path / "codes_00001.safetensors"
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    with pytest.raises(ValueError, match="codes_00000.safetensors is damaged or of another store"):
        LatentStore(tmp_path)


def test_codes_that_are_not_finite_stop_the_writing(tmp_path, images):
    model = tokenizer()
    model.std.fill_(1e-6)
    with pytest.raises(FloatingPointError, match="images 0 to 15"):
        write(tmp_path, images, model, precision="fp16")


def run_stage(root, accelerator, **settings):
    work = SimpleNamespace(accelerator=accelerator, artefact=lambda name: root / name)
    recipe = SimpleNamespace(
        data=Data({"kind": "digits"}, size=8),
        latents=Latents(precision="fp32", shard=300, flip=True, **settings),
        tokenizer=SimpleNamespace(model={"kind": "patches"}),
        text=None,
        joint=None,
        seed=0,
        precision=StagePrecision(),
    )
    out = root / f"latents_{accelerator.num_processes}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode_dataset, "find", lambda slot, kind: Patches)
        encode_dataset.run(recipe, work, out)
    return out


TWO = """
import sys
from pathlib import Path

sys.path.insert(0, {tests!r})
import torch
from accelerate import Accelerator
from test_latents import run_stage

torch.set_num_threads(1)
run_stage(Path({root!r}), Accelerator(cpu=True))
"""


def test_the_stage_brings_codes_to_unit_scale_and_two_processes_do_what_one_does(tmp_path):
    Patches().save_pretrained(tmp_path / "joint")
    script = tmp_path / "two.py"
    script.write_text(TWO.format(tests=str(Path(__file__).parent), root=str(tmp_path)))
    for process in start_two(script, log=tmp_path / "log"):
        process.finish()
    one, two = LatentStore(run_stage(tmp_path, Process())), LatentStore(tmp_path / "latents_2")
    z = torch.cat([everything(one).code.z, everything(one, flip=True).code.z]).flatten(0, 1)
    torch.testing.assert_close(z.mean(0), torch.zeros(48), atol=1e-3, rtol=0)
    torch.testing.assert_close(z.std(0), torch.ones(48), atol=1e-3, rtol=0)
    torch.testing.assert_close(everything(two).code.z, everything(one).code.z)
    kept = Patches.from_pretrained(tmp_path / "latents_2/tokenizer")
    assert kept.mean.tolist() == two.manifest["mean"] and kept.std.tolist() == two.manifest["std"]
    assert kept.mean.abs().min() > 0.1
    run_stage(tmp_path, Process())  # nothing is left to do, and nothing is stale


def test_statistics_that_a_tokenizer_came_with_stay_where_they_are_asked_for(tmp_path):
    model = Patches()
    model.save_pretrained(tmp_path / "joint")
    with pytest.raises(ValueError, match="came with no mean and std of its codes; set latents.statistics=measured"):
        run_stage(tmp_path, Process(), statistics="stored")
    model.mean.fill_(0.25), model.std.fill_(2)
    model.save_pretrained(tmp_path / "joint")
    store = LatentStore(run_stage(tmp_path, Process(), statistics="stored"))
    assert set(store.manifest["mean"]) == {0.25} and set(store.manifest["std"]) == {2.0}


def test_moments_are_brought_to_the_scale_of_their_samples(images):
    plan = EncodingPlan(Latents(posterior="moments"), 0, "fp32")
    model = tokenizer()
    mean, std = measure(model, images, plan, Process())
    plan.latents.posterior = "sample"
    sampled = measure(model, images, plan, Process())
    torch.testing.assert_close(mean, sampled[0], atol=0.1, rtol=0)
    torch.testing.assert_close(std, sampled[1], rtol=0.05, atol=0)


def test_statistics_are_of_all_stored_views(images):
    latents = Latents(posterior="mode", crops=(1.5,), flip=True)
    plan = EncodingPlan(latents, 0, "fp32")
    mean, std = measure(tokenizer(), images, plan, Process())
    views = torch.cat([batch.images for batch in images.views(torch.arange(359), (1.5,), True)])
    z = 3 * Patches().features(views).flatten(0, 1) + 5
    torch.testing.assert_close(mean, z.mean(0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(std, z.std(0), atol=1e-3, rtol=1e-3)

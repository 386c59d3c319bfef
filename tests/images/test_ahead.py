"""Reading ahead: the same to the bit by any number of processes, errors as they are, in training and encoding alike."""

import os
import signal

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from support.loop_task import Denoise, Numbers, weights

from pipeline.components import build
from pipeline.images.ahead import narrowed, read_ahead, read_all, widened
from pipeline.images.reading import ImageBatch, Images
from pipeline.latents.encoding import EncodingPlan, encode
from pipeline.latents.scale import measure
from pipeline.recipes.data import Data
from pipeline.recipes.latents import Latents
from pipeline.recipes.loops import Loop
from pipeline.training.loop import TrainingRun, train
from pipeline.training.order import MicroBatches, batches

NODE = {"kind": "conv_autoencoder", "width": 8, "multipliers": [1, 2], "blocks": 1, "groups": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of ten pictures of many sizes."""
    root, generator = tmp_path_factory.mktemp("pictures"), torch.Generator().manual_seed(0)
    for number in range(20):
        width, height = torch.randint(16, 40, (2,), generator=generator).tolist()
        pixels = torch.randint(0, 256, (height, width, 3), generator=generator).to(torch.uint8)
        (root / "ab"[number % 2]).mkdir(exist_ok=True)
        Image.fromarray(pixels.numpy()).save(root / "ab"[number % 2] / f"{number:02d}.png")
    return root


def images_in(folder, workers: int, **settings) -> Images:
    source = {"kind": "image_folder", "path": str(folder), "held_out": 0.0}
    return Images(Data(source, 16, workers=workers, **settings), "train")


def same(one, other) -> bool:
    return torch.equal(one.images, other.images) and torch.equal(one.condition.labels, other.condition.labels)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_batches_are_the_same_by_any_number_of_processes(folder, workers):
    def first_steps(count: int) -> list[ImageBatch]:
        images = images_in(folder, count, crop="random", flip=True)
        source = batches(images, MicroBatches(6, accumulate=2), 5, 1, count)
        return [next(source) for _ in range(9)]

    assert all(map(same, first_steps(0), first_steps(workers)))
    rows = torch.arange(20).flip(0)
    assert same(read_all(images_in(folder, workers), rows, 3), images_in(folder, 0).plain(rows))


def test_images_travel_as_bytes_and_what_has_no_bytes_as_it_is(folder):
    batch = images_in(folder, 0).plain(torch.arange(4))
    packed = narrowed([batch, {"z": batch.images}])
    assert packed[0].images.dtype == torch.uint8 and packed[1]["z"].dtype == torch.float32
    assert torch.equal(widened(packed)[0].images, batch.images)
    odd = ImageBatch(batch.images + 1e-4)
    assert torch.equal(widened(narrowed(odd)).images, odd.images)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_is_raised_as_it_is_when_its_batch_is_asked_for(folder, tmp_path, workers):
    (tmp_path / "a").mkdir(parents=True)
    for path in sorted((folder / "a").iterdir()):
        (tmp_path / "a" / path.name).write_bytes(path.read_bytes())
    broken = sorted((tmp_path / "a").iterdir())[5]
    broken.write_bytes(broken.read_bytes()[:60])
    images = images_in(tmp_path, workers)
    read = read_ahead(images.plain, torch.arange(10).split(2), workers)
    assert [len(next(read)) for _ in range(2)] == [2, 2]
    with pytest.raises(ValueError, match=f"^1 broken, data.tolerate is 0: .*{broken.name}") as error:
        next(read)
    assert "\n" not in str(error.value) and "worker" not in str(error.value)


def killed(row: int) -> int:
    if row == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return row


def test_a_worker_that_is_killed_is_one_line():
    with pytest.raises(ChildProcessError, match="killed, or has no shared memory left; set data.workers lower"):
        list(read_ahead(killed, range(4), 1))


def test_the_code_of_a_folder_is_the_same_by_workers(folder, tmp_path):
    files = []
    for workers in (0, 2):
        torch.manual_seed(0)
        tokenizer = build("tokenizers", NODE | {"bottleneck": {"kind": "gaussian", "dim": 4}}, image_size=16)
        plan = EncodingPlan(Latents(batch=3, shard=8, crops=(1.1,), flip=True), 0, "fp32")
        images = images_in(folder, workers)
        mean, std = measure(tokenizer, images, plan, Accelerator(cpu=True))
        tokenizer.mean.copy_(mean), tokenizer.std.copy_(std)
        encode(tokenizer, images, plan, tmp_path / str(workers), Accelerator(cpu=True))
        files.append({path.name: path.read_bytes() for path in (tmp_path / str(workers)).iterdir()})
    assert files[0] == files[1] and len(files[0]) >= 4


def test_a_training_writes_how_long_it_waited_and_leaves_no_worker_behind(tmp_path):
    trained, lines = [], []
    for workers in (0, 2):
        loop = Loop(4, {"maker": 1e-2, "judge": 1e-2}, batch=8, log_every=2)
        run = TrainingRun(loop, tmp_path / str(workers), 3, Accelerator(cpu=True), workers)
        trained.append(weights(train(Denoise(), Numbers(), run)))
        lines += (tmp_path / str(workers) / "metrics.jsonl").read_text().splitlines()
    assert torch.equal(*trained)
    assert all('"wait": ' in line for line in lines) and len(lines) == 4
    assert not torch.multiprocessing.active_children()

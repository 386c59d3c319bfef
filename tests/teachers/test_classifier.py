"""The judge: it learns, it is a function of its seed, it serves all sizes, and it survives the disk."""

import pytest
import torch

from pipeline.teachers.classifier import Classifier, fit, jitter, rotate, stem_and_stages


def bars(n: int, size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy images of an upright bar (0) or a lying one (1), whose place varies."""
    randomness = torch.Generator().manual_seed(5)
    labels = torch.arange(n) % 2
    images = torch.randn(n, 3, size, size, generator=randomness) * 0.3 - 0.5
    for i, label in enumerate(labels.tolist()):
        place = 2 + i % (size - 4)
        images[(i, slice(None), slice(None), place) if label == 0 else (i, slice(None), place)] += 1.5
    return images.clamp(-1, 1), labels


def test_it_learns_classes_and_a_seed_means_one_network():
    images, labels = bars(96)
    before = torch.random.get_rng_state()
    one, again = (fit(images, labels, 2, seed=3, steps=25, batch=32) for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert one.accuracy(images, labels) > 0.95
    assert one.name == "classifier" and not one.training
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), again.state_dict().values()))
    other = fit(images, labels, 2, seed=4, steps=1, batch=8)
    assert not torch.equal(other.head.weight, fit(images, labels, 2, seed=5, steps=1, batch=8).head.weight)


@pytest.mark.parametrize("labels, classes", [(None, 0), (torch.zeros(64, dtype=torch.long), 1)])
def test_without_classes_it_learns_quarter_turns(labels, classes):
    images, _ = bars(64)
    images[:, :, :3] = 1.0  # an edge that tells which way is up
    network = fit(images, labels, classes, seed=0, steps=40, batch=32)
    assert network.name == "rotation" and network.config.num_classes == 4
    for turns in range(4):
        assert network.accuracy(images.rot90(turns, dims=(2, 3)), torch.full((64,), turns)) > 0.9


def test_turned_says_how_far():
    images, _ = bars(16)
    result, turns = rotate(images, torch.Generator().manual_seed(0))
    assert set(turns.tolist()) == {0, 1, 2, 3}
    for image, before, k in zip(result, images, turns.tolist()):
        assert torch.equal(image, before.rot90(k, dims=(1, 2)))


def test_jitter_of_nothing_is_the_image():
    images, _ = bars(4)
    torch.testing.assert_close(jitter(images, torch.Generator(), 0, 0, 0), images)
    assert (jitter(images, torch.Generator()) - images).abs().max() > 0.1


@pytest.mark.parametrize("size", [8, 16, 28, 64, 256])
def test_sizes(size):
    network = Classifier(7, **stem_and_stages(size)).eval()
    images = torch.rand(2, 3, size, size) * 2 - 1
    maps = network.maps(images)
    assert 3 <= maps[-1].shape[-1] <= 8 and all(a.shape[-1] > b.shape[-1] for a, b in zip(maps, maps[1:]))
    assert network.features(images).shape == (2, network.config.dim)
    torch.testing.assert_close(network(images), network.head(network.features(images)))


def test_too_small_is_refused():
    with pytest.raises(ValueError, match="8 pixels"):
        stem_and_stages(7)


def test_save_and_load(tmp_path):
    images, labels = bars(32)
    network = fit(images, labels, 2, seed=0, steps=2, batch=8)
    network.save_pretrained(tmp_path)
    loaded = Classifier.from_pretrained(tmp_path)
    assert torch.equal(loaded(images), network(images)) and loaded.name == network.name

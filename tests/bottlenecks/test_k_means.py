"""k-means finds the clusters of features that nothing trains, and then leaves them alone."""

import copy

import torch

from pipeline.bottlenecks.k_means import KMeans
from pipeline.draws import StepDraws
from pipeline.nn.clusters import k_means

GROUPS = torch.tensor([[4.0, 0.0], [-4.0, 0.0], [0.0, 4.0]])


def features(step: int, batch: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    groups = torch.randint(3, (batch, 6), generator=generator)
    return GROUPS[groups] + 0.1 * torch.randn(batch, 6, 2, generator=generator)


def draws(step: int, rows: slice = slice(0, 8)) -> StepDraws:
    return StepDraws(0, step, rows, 8)


def trained(steps: int, **settings: int) -> KMeans:
    torch.manual_seed(0)
    neck = KMeans(2, 3, **settings).train()
    for step in range(steps):
        neck(features(step), draws(step))
    return neck


def test_centres_become_the_means_of_what_is_nearest_to_them():
    neck = trained(1, rounds=5, images=8)
    began = torch.manual_seed(0) and KMeans(2, 3, rounds=5, images=16).train()
    began(features(0), draws(0))  # no round is over yet, so these are the centres that it begins with
    torch.testing.assert_close(neck.codebook, k_means(features(0).flatten(0, 1), began.codebook, rounds=1))


def test_a_round_is_of_so_many_images_and_after_the_rounds_nothing_moves():
    halves, whole = trained(4, rounds=2, images=16), trained(9, rounds=2, images=16)
    assert halves.done == 2 and torch.equal(halves.codebook, whole.codebook)
    one = trained(3, rounds=2, images=16)
    assert one.done == 1 and one.read == 8 and not torch.equal(one.codebook, halves.codebook)


def test_features_need_no_gradient_and_evaluation_changes_nothing():
    neck = KMeans(2, 3, rounds=1, images=8)
    before = copy.deepcopy(neck.state_dict())
    neck.eval()(features(0), draws(0))
    neck.train()(features(0))
    assert all(torch.equal(value, before[name]) for name, value in neck.state_dict().items())


def test_a_round_that_is_not_finite_changes_nothing():
    neck = trained(1, rounds=3, images=8)
    before = neck.codebook.clone()
    neck(torch.full((8, 6, 2), torch.nan), draws(1))
    assert torch.equal(neck.codebook, before) and neck.done == 2 and neck.sums.isfinite().all()


def test_micro_batches_of_a_round_are_one_batch_once_it_has_begun():
    whole, parts = trained(1, rounds=3, images=8), trained(1, rounds=3, images=8)
    whole(features(1), draws(1))
    for rows in (slice(0, 2), slice(2, 8)):
        parts(features(1)[rows], draws(1, rows))
    torch.testing.assert_close(parts.codebook, whole.codebook)

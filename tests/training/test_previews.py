"""Previews change nothing that is trained; an early stop keeps the best weights; memorising is seen and said."""

import re

import pytest
import torch
from PIL import Image
from support.loop_task import Denoise, Numbers, fit, weights

import run as program
import stages
from pipeline.checks.previews import check_held_out_images
from pipeline.checks.recipe import check_recipe
from pipeline.files.writing import remove
from pipeline.images.facts import SplitFacts
from pipeline.images.grids import reconstructions
from pipeline.recipes.loops import EarlyStop
from pipeline.recipes.schema import load
from pipeline.runs.workspace import fingerprint
from pipeline.training import checkpoints
from pipeline.training.loop import Interrupted
from pipeline.training.overfitting import Overfitting, Preview, find_overfitting, read_previews
from pipeline.training.previews import PreviewPicture
from stages import train_generator, train_tokenizer


class Drawing(Denoise):
    """A training that draws from the global generator at every step."""

    def turns(self, batch, draws, step):
        batch.x = batch.x + 0.01 * torch.randn_like(batch.x)
        yield from super().turns(batch, draws, step)


class Passing(Denoise):
    """Its held-out loss is the distance of a weight from a place that it passes by on its way."""

    def held_out_terms(self, averages, batch, draws):
        return {"distance": (averages["maker"][0].bias[0] - self.place).abs()}


def passing(place: float) -> Passing:
    task = Passing()
    task.place = place
    return task


def stopped_at(place: float, folder, **changes) -> tuple[torch.Tensor, list[Preview]]:
    stop = {"early_stop": EarlyStop(3, 2), "steps": 60, "lr": {"maker": 1e-2, "judge": 1e-2}}
    found = fit(folder, passing(place), **stop | changes)
    return weights(found), read_previews(folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> float:
    """Where the weight is after 20 steps."""
    return float(fit(tmp_path_factory.mktemp("place"), steps=20)["maker"][0].bias[0])


def test_previews_change_no_bit(tmp_path):
    with_previews = fit(tmp_path / "a", Drawing(), preview_every=5)
    assert torch.equal(weights(fit(tmp_path / "b", Drawing())), weights(with_previews))
    rows = read_previews(tmp_path / "a")
    assert [row.step for row in rows] == [5, 10, 12] and rows[-1].held_out < rows[0].held_out
    assert rows[0].held_out == rows[0].train == sum(rows[0].terms.values())  # the same rows here
    names = ["latest.png", *(f"step_{step:08d}.png" for step in (5, 10, 12))]
    assert sorted(path.name for path in (tmp_path / "a" / "pictures").iterdir()) == names
    assert Image.open(tmp_path / "a" / "pictures" / "latest.png").size == (8, 8)
    assert not (tmp_path / "b" / "pictures").exists() and not read_previews(tmp_path / "b")


def test_a_resumed_training_forgets_later_previews_and_a_new_one_all(tmp_path):
    straight = fit(tmp_path / "a", preview_every=2)
    fit(tmp_path / "b", steps=7, save_every=7, preview_every=2)  # its last preview is of no step of the longer one
    assert torch.equal(weights(fit(tmp_path / "b", preview_every=2)), weights(straight))
    assert [row.step for row in read_previews(tmp_path / "b")] == [2, 4, 6, 7, 8, 10, 12]
    (tmp_path / "c" / "pictures").mkdir(parents=True)
    (tmp_path / "c" / "pictures" / "step_00000099.png").touch()
    fit(tmp_path / "c", preview_every=12)
    assert len(list((tmp_path / "c" / "pictures").iterdir())) == 2


def test_an_early_stop_keeps_the_best_averages(tmp_path, place):
    kept, rows = stopped_at(place, tmp_path / "stopped")
    best = min(rows, key=lambda row: row.held_out)
    assert best.step == 20 and [row.step for row in rows] == list(range(2, 27, 2)), "three more, and none is smaller"
    assert torch.equal(kept, weights(fit(tmp_path / "straight", steps=20)))
    again, same = stopped_at(place, tmp_path / "stopped")
    assert torch.equal(again, kept) and same == rows, "the finished training, asked for again"


@pytest.mark.parametrize("killed", [17, 23])
def test_a_killed_early_stop_ends_with_the_same_bits(killed, tmp_path, monkeypatch, place):
    kept, rows = stopped_at(place, tmp_path / "straight")
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.training.loop.any_process", lambda accelerator, here, step: step == killed)
        with pytest.raises(Interrupted):
            stopped_at(place, tmp_path / "killed", save_every=9)
    remove(checkpoints.finished(tmp_path / "killed")[-1])  # it was killed, and previews were made since it last saved
    again, same = stopped_at(place, tmp_path / "killed", save_every=9)
    assert torch.equal(again, kept) and same == rows


def test_without_a_smaller_loss_all_steps_are_taken_and_the_best_is_kept(tmp_path, place):
    kept, rows = stopped_at(place, tmp_path / "all", steps=24)
    assert rows[-1].step == 24 and torch.equal(kept, weights(fit(tmp_path / "straight", steps=20)))


def test_a_loss_that_is_not_finite_is_never_the_best(tmp_path, caplog):
    _, rows = stopped_at(float("nan"), tmp_path)
    assert rows[0].held_out is None and len(rows) == 4, "patience runs out"


def test_a_picture_of_numbers_that_are_not_finite_is_left_out(tmp_path, monkeypatch, caplog):
    def draw(averages) -> PreviewPicture:
        images = torch.full((3, 3, 4, 4), float("nan"))
        return PreviewPicture(reconstructions(images, images))

    monkeypatch.setattr("support.loop_task.draw", draw)
    fit(tmp_path, preview_every=6)
    assert "maker: no picture after step 6" in caplog.text and len(read_previews(tmp_path)) == 2


def course(*losses: tuple[float, float]) -> list[Preview]:
    return [Preview(step, held_out, train) for step, (held_out, train) in enumerate(losses, 1)]


def test_memorising_is_seen_by_the_losses():
    fallen = [(1.0, 1.0), (0.9, 0.8)]
    assert find_overfitting(course(*fallen, (0.95, 0.7), (0.97, 0.6))) is None, "too soon"
    found = find_overfitting(course(*fallen, (0.95, 0.7), (0.97, 0.6), (1.0, 0.5)))
    assert (
        found == Overfitting(2, found.why) and "rose from 0.9 to 1, that of training images fell from 0.8" in found.why
    )
    assert found.describe("generator").startswith("generator: it began to memorise its training images at step 2: ")
    assert find_overfitting(course(*fallen, (0.95, 0.9), (0.97, 0.9), (1.0, 0.9))) is None, "both rise: no overfitting"
    assert find_overfitting(course(*fallen, (0.901, 0.7), (0.902, 0.6), (0.903, 0.5))) is None, "a plateau"
    assert find_overfitting(course(*fallen, (0.95, 0.7), (0.97, 0.6), (0.85, 0.5))) is None, "it falls again"
    negative = [(-1.0, -1.0), (-0.9, -1.1), (-0.8, -1.2), (-0.7, -1.3)]
    assert find_overfitting(course(*negative)).step == 1


def test_memorising_is_seen_by_near_copies():
    few, many = (Preview(step, 1.0, 1.0, {}, share, 0.1) for step, share in ((1, 0.3), (2, 0.4)))
    assert find_overfitting([few]) is None
    found = find_overfitting([few, many])
    assert (
        found.step == 2
        and "40% of its samples are near copies of one training image, of new real images 10%" in found.why
    )


class Memorising(Passing):
    """The loss of rows below 50 falls as the weight moves on."""

    def held_out_terms(self, averages, batch, draws):
        (distance,) = super().held_out_terms(averages, batch, draws).values()
        return {"distance": distance if batch.x.mean() > 50 else averages["maker"][0].bias[0]}


def test_the_log_says_it_once(tmp_path, caplog, place):
    task, held_out = Memorising(), Numbers()
    task.place, held_out.rows = place, held_out.rows + 100
    fit(tmp_path, task, held_out, steps=60, preview_every=4)
    said = [record.getMessage() for record in caplog.records if "began to memorise" in record.getMessage()]
    assert len(said) == 1 and said[0].startswith("maker: it began to memorise its training images at step 20: ")


def test_what_previews_and_early_stops_do_to_a_fingerprint():
    def hashes(*settings: str) -> list[str]:
        recipe = load("digits", settings)
        return [fingerprint(stage.uses(recipe)) for stage in (train_tokenizer, train_generator)]

    plain = hashes()
    assert hashes("generator.loop.preview_every=5", "tokenizer.phases.main.loop.preview_every=5") == plain
    assert hashes("trackers=[]") == plain
    tokenizer, generator = hashes("generator.loop.early_stop={patience: 2}")
    assert tokenizer == plain[0] and generator != plain[1]


MISTAKES = {
    "posttrain.phase.loop.early_stop={patience: 2}": "early_stop: post-training ends by posttrain.keep",
    "generator.loop.early_stop={patience: 0}": "generator.loop.early_stop.patience is 0; give 1 or more",
    "generator.loop.preview_every=-1": "generator.loop.preview_every is -1; give 0 or more",
    "trackers=[wandbb]": "trackers: there is no tracker 'wandbb'; did you mean 'wandb'",
    "trackers=[swanlab]": "trackers: swanlab is not installed; type: pip install swanlab, or leave it out",
}


@pytest.mark.parametrize("override, message", MISTAKES.items())
def test_planted_mistakes_stop_at_check(override, message):
    with pytest.raises(ValueError, match=message) as error:
        check_recipe(load("digits_robust_ar", [override]))
    assert "\n" not in str(error.value)


def test_an_early_stop_depends_on_the_held_out_images():
    early = load("digits", ["generator.loop.early_stop.patience=2"])
    assert {stage.name: stage.images for stage in program.find_stages(early, "train_generator")[0]} == {
        "train_tokenizer": ("train",),
        "train_jointly": ("train",),
        "encode_dataset": ("train",),
        "train_generator": ("held_out",),
    }
    assert program.splits_of(stages.describe("train_generator"), load("digits")) == ()


@pytest.mark.parametrize("setting", ["preview_every=2", "early_stop.patience=2"])
def test_without_held_out_images_there_is_nothing_to_look_at(setting):
    named = re.match(r"\w+", setting)[0]
    recipe = load("digits", [f"tokenizer.phases.main.loop.{setting}"])
    facts = {split: SplitFacts(split, count, (), ()) for split, count in (("train", 9), ("held_out", 0))}
    with pytest.raises(ValueError, match=f"{named} looks at held-out images, and none is held out"):
        check_held_out_images(recipe, facts)
    check_held_out_images(load("digits"), facts)


def test_a_milestone_may_lie_behind_an_early_stop():
    early = ["generator.loop.early_stop={patience: 2}", "generator.milestones=[10]"]
    with pytest.raises(ValueError, match="may end before a step of generator.milestones"):
        check_recipe(load("digits", early))

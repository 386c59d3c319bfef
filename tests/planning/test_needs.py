"""What cannot be measured is said to be so, in the stated cases alone; every other failure of a step is an error."""

import pytest

from pipeline.checks.recipe import check_recipe
from pipeline.planning import needs
from pipeline.planning.shadows import NotMeasurable
from pipeline.planning.trainings import planned
from pipeline.recipes.schema import load
from pipeline.training.reconstruction import Reconstruction
from pipeline.validation import NotHere, SettingError, at


def first_of(name: str):
    recipe = load(name, ["weights.require=false"])
    return planned(recipe, check_recipe(recipe), 10)[0]


def test_a_folder_that_is_not_there_is_no_fault_and_one_that_is_wrong_is(tmp_path, monkeypatch):
    """TiTok's first phase learns the ids of an imported tokenizer."""
    monkeypatch.chdir(tmp_path)
    training = first_of("imagenet256_titok_l32")
    found = needs.measure(training)
    assert found.note.startswith("not measured: proxy_codes.path: imported/maskgit_vqgan holds no config.json; name")
    assert found.step is None and not found.players
    (tmp_path / "imported/maskgit_vqgan").mkdir(parents=True)
    with pytest.raises(SettingError, match="^proxy_codes.path: imported/maskgit_vqgan holds no config.json; name"):
        needs.measure(training)


def failing(error: Exception):
    """Turns of a training that fail at the first."""

    def turns(*_):
        raise error
        yield

    return turns


@pytest.mark.parametrize("error", [ValueError("a fault"), TypeError("a fault"), RuntimeError("a fault")])
def test_a_fault_of_a_step_is_an_error(error, monkeypatch):
    training = first_of("digits")
    monkeypatch.setattr(Reconstruction, "turns", failing(error))
    with pytest.raises(type(error), match="^a fault$"):
        needs.measure(training)


def test_a_fault_of_a_task_is_an_error_and_unknown_sizes_are_none(monkeypatch):
    training = first_of("digits")
    for error, raised in ((ValueError("a fault"), True), (NotMeasurable("no sizes"), False)):
        monkeypatch.setattr(needs, "ready", lambda *_, error=error: (_ for _ in ()).throw(error))
        if raised:
            with pytest.raises(ValueError, match="^a fault$"):
                needs.measure(training)
        else:
            assert needs.measure(training).note == "not measured: no sizes"


def test_a_step_that_reads_content_is_computed_where_it_is_small(monkeypatch):
    training = first_of("digits_vq_ar")
    found = needs.measure(training)
    assert found.note == "computed on the CPU" and found.step.per_image > 0
    monkeypatch.setattr(needs, "LARGEST_ON_CPU", 1)
    found = needs.measure(training)
    assert found.note == "activations not measured: Tensor.item() cannot be called on meta tensors"
    assert found.step is None and found.fixed > 0


def test_a_place_put_before_an_error_leaves_its_kind():
    with pytest.raises(NotHere, match="^outer.inner: gone$"), at("outer"):
        raise NotHere("inner", ": gone")

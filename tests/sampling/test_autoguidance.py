"""AutoGuidance: a weak network in a pipeline, in recipes and stages, and the earlier selves that training keeps."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import generating
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from support.loop_task import Denoise, Numbers
from support.tiny_pipeline import (
    MODEL,
    generators,
    make_network,
    make_pipeline,
    make_recipe,
    make_run,
    make_tokenizer,
    randomised,
)

from pipeline import LatentPipeline
from pipeline.checks.recipe import check_recipe
from pipeline.code import Code, Condition
from pipeline.draws import ImageDraws
from pipeline.networks.wide_head_transformer import WideHeadTransformer
from pipeline.objectives.flow_matching import FlowMatching
from pipeline.objectives.gaussian_diffusion import GaussianDiffusion
from pipeline.objectives.next_token import NextToken
from pipeline.runs.milestones import milestone
from pipeline.samplers.guidance import Guidance
from pipeline.sampling.from_folder import sample_folder
from pipeline.sampling.weak_network import check_same_codes
from pipeline.training.milestones import Milestones
from stages import posttrain_decoder, sample

OBJECTIVES = {"flow": FlowMatching(), "noise": GaussianDiffusion(variance="fixed_small")}


def make_weak(num_classes: int = 4) -> WideHeadTransformer:
    """Smaller, and of another kind than the network it guides."""
    with torch.random.fork_rng():
        torch.manual_seed(5)  # the frequencies of its times are drawn, too
        return randomised(WideHeadTransformer([4, 4], 3, num_classes, 1, 16, 2, 1, 16, 2), 5)


def guided_pipeline(**arguments) -> LatentPipeline:
    return make_pipeline(weak=make_weak(), **arguments)


def codes(pipe: LatentPipeline, labels: list[int], seeds: list[int], **settings) -> torch.Tensor:
    return pipe(labels, generator=generators(*seeds), output_type="latent", **settings).images


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_every_image_depends_on_its_label_and_seed_alone(objective):
    pipe = guided_pipeline(objective=objective)
    together = codes(pipe, [1, 2, 0], [5, 6, 7])
    for i, (label, seed) in enumerate([(1, 5), (2, 6), (0, 7)]):
        torch.testing.assert_close(codes(pipe, [label], [seed])[0], together[i], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_at_scale_1_the_weak_network_is_not_asked(objective):
    pipe, plain = guided_pipeline(objective=objective), make_pipeline(objective=objective)
    pipe.weak.register_forward_hook(lambda *_: pytest.fail("the weak network was asked"))
    same = codes(plain, [1, 2], [5, 6], guidance_scale=1.0)
    assert torch.equal(codes(pipe, [1, 2], [5, 6], guidance_scale=1.0), same)


def test_one_step_leads_away_from_the_weak_answer_to_the_same_request():
    pipe, noise = guided_pipeline(), torch.randn(2, 16, 3)
    condition, top = Condition(labels=torch.tensor([1, 2])), torch.ones(2)
    with torch.no_grad():
        strong, weak = pipe.network(noise, top, condition), pipe.weak(noise, top, condition)
    found = codes(pipe, [1, 2], [5, 6], latents=noise, num_inference_steps=1, guidance_scale=3.0)
    torch.testing.assert_close(found, noise - (weak + 3 * (strong - weak)))


def test_without_it_guidance_is_classifier_free_again():
    pipe, plain = guided_pipeline(), make_pipeline()
    away = codes(pipe, [1, 2], [5, 6])
    pipe.weak = None
    assert torch.equal(codes(pipe, [1, 2], [5, 6]), codes(plain, [1, 2], [5, 6]))
    assert not torch.allclose(away, codes(plain, [1, 2], [5, 6]), atol=1e-2)


def test_an_unconditional_network_can_be_guided_by_a_weak_one():
    pipe = make_pipeline(0, weak=make_weak(0))
    images = [pipe(None, generator=generators(5), guidance_scale=s, output_type="latent").images for s in (1.0, 2.0)]
    assert not torch.allclose(*images, atol=1e-2)


def test_codes_are_regenerated_under_the_same_guidance():
    pipe, condition = guided_pipeline(), Condition(labels=torch.tensor([1]))
    for objective in OBJECTIVES.values():
        found = []
        for guide in ({}, {"weak": pipe.weak}):
            draws = ImageDraws(generators(3))
            code = Code(z=torch.zeros(1, 16, 3))
            arguments = (pipe.network, code, condition, 0.5, draws, 3, pipe.defaults.guidance)
            found.append(generating.regenerate(objective, *arguments, **guide).z)
        assert not torch.allclose(*found, atol=1e-3)


def test_it_is_saved_with_the_pipeline_and_must_be_whole(tmp_path):
    pipe = guided_pipeline(sampling={"steps": 3, "guidance": {"scale": 2.0}, "weak": "runs/other/generator"})
    pipe.save_pretrained(tmp_path / "whole")
    index = json.loads((tmp_path / "whole" / "model_index.json").read_text())
    assert index["weak"] == ["pipeline.networks.wide_head_transformer", "WideHeadTransformer"]
    loaded = LatentPipeline.from_pretrained(tmp_path / "whole")
    assert torch.equal(codes(loaded, [1, 2], [5, 6]), codes(pipe, [1, 2], [5, 6]))
    assert loaded.defaults.weak == "runs/other/generator"
    assert LatentPipeline.from_pretrained(tmp_path / "whole", weak=None).weak is None
    shutil.rmtree(tmp_path / "whole" / "weak")
    with pytest.raises((ValueError, OSError)):
        LatentPipeline.from_pretrained(tmp_path / "whole")


def test_a_pipeline_without_one_loads_as_it_did(tmp_path):
    make_pipeline().save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    del index["weak"]  # as folders of earlier versions
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    (tmp_path / "checksums.json").unlink()
    loaded = LatentPipeline.from_pretrained(tmp_path)
    assert loaded.weak is None and torch.equal(codes(loaded, [1], [5]), codes(make_pipeline(), [1], [5]))


def test_networks_that_do_not_answer_for_the_same_are_refused():
    pipe = make_pipeline()
    with pytest.raises(ValueError, match="num_classes=3"):
        pipe.weak = make_weak(3)
    with pytest.raises(ValueError, match="outputs=2"):
        pipe.weak = make_network(outputs=2)
    with pytest.raises(ValueError, match="models ids"):
        make_pipeline(objective=NextToken(), weak=make_weak())


def recipe(**weak):
    tokenizer = {"model": MODEL, "start": "a/finished/tokenizer"}
    sampling = {"images": 7, "steps": 3, "guidance": 2.0, "batch": 3, "weak": weak}
    return make_recipe(sample=sampling, tokenizer=tokenizer)


def test_a_recipe_states_a_folder_or_a_step_that_is_kept():
    for wrong in ({}, {"folder": "somewhere", "step": 3}):
        with pytest.raises(ValueError, match="either folder=FOLDER"):
            recipe(**wrong)
    with pytest.raises(ValueError, match=r"set generator.milestones=\[3\]"):
        check_recipe(recipe(step=3))
    with pytest.raises(ValueError, match="holds no network"):
        check_recipe(recipe(folder="nowhere"))


def test_what_a_recipe_states_is_checked_before_anything_runs():
    early = recipe(step=3)
    kept = replace(early, generator=replace(early.generator, milestones=(3,)))
    check_recipe(kept)
    check_recipe(replace(kept, generator=replace(kept.generator, condition="none")))  # which needs no class
    with pytest.raises(ValueError, match="weak is not used at sample.guidance=1"):
        check_recipe(replace(kept, sample=replace(kept.sample, guidance=Guidance())))
    with pytest.raises(ValueError, match="generator.milestones: there is no step 6"):
        check_recipe(replace(kept, generator=replace(kept.generator, milestones=(3, 6))))


def test_objectives_of_the_two_must_predict_the_same(tmp_path):
    make_weak().save_pretrained(tmp_path / "network")
    FlowMatching(prediction="data").save_pretrained(tmp_path / "objective")
    with pytest.raises(ValueError, match="prediction=data, .* velocity"):
        check_recipe(recipe(folder=str(tmp_path)))
    GaussianDiffusion().save_pretrained(tmp_path / "objective")
    with pytest.raises(ValueError, match="GaussianDiffusion"):
        check_recipe(recipe(folder=str(tmp_path)))
    FlowMatching(shift=3.0, cosine=True).save_pretrained(tmp_path / "objective")  # other levels, the same meaning
    check_recipe(recipe(folder=str(tmp_path)))


def test_the_stage_samples_with_what_the_recipe_states_and_says_so(tmp_path):
    work, generator = make_run(tmp_path / "run"), tmp_path / "run" / "generator"
    make_weak().save_pretrained(milestone(generator, 3))
    make_weak().save_pretrained(tmp_path / "other" / "network")
    pipe, archives = guided_pipeline(), []
    for number, stated in enumerate(({"step": 3}, {"folder": str(tmp_path / "other")})):
        out = tmp_path / f"out{number}"
        sample.run(recipe(**stated), work, out)
        protocol = json.loads((out / "samples.json").read_text())
        said = "step 3 of the same training" if number == 0 else str(tmp_path / "other")
        parameters = sum(p.numel() for p in pipe.weak.parameters())
        assert protocol["weak"] == {"from": said, "parameters": parameters}
        assert protocol["network_evaluations"] == 3
        archives.append(np.load(out / "samples.npz")["arr_0"].astype(int))
    expected = np.asarray(pipe(2, generator=generators(2)).images[0]).astype(int)
    assert abs(archives[0][2] - expected).max() <= 1 and np.array_equal(*archives)


def test_another_folder_from_the_command_line(tmp_path):
    make_pipeline().save_pretrained(tmp_path / "pipeline")
    make_weak().save_pretrained(tmp_path / "weak")
    settings = {"images": 2, "weak": str(tmp_path / "weak"), "out": str(tmp_path / "out")}
    out = sample_folder(str(tmp_path / "pipeline"), settings, Accelerator(cpu=True))
    assert json.loads((out / "samples.json").read_text())["weak"]["from"] == str(tmp_path / "weak")
    expected = np.asarray(guided_pipeline()(1, generator=generators(1)).images[0]).astype(int)
    assert abs(np.load(out / "samples.npz")["arr_0"][1].astype(int) - expected).max() <= 1


def test_samples_and_pairs_are_stale_when_the_weak_network_changes(tmp_path):
    stated = recipe(folder=str(tmp_path))
    phase = {"train": "decoder", "weights": {"pixel": 1.0}, "loop": {"steps": 1, "lr": {"tokenizer": 1e-3}}}
    paired = make_recipe(
        posttrain={"phase": phase, "pairs": 4, "held_out": 2}, sample={"weak": {"folder": str(tmp_path)}}
    )
    make_weak().save_pretrained(tmp_path / "network")
    before = sample.uses(stated), posttrain_decoder.uses(paired)
    randomised(make_weak(), 9).save_pretrained(tmp_path / "network")
    after = sample.uses(stated), posttrain_decoder.uses(paired)
    assert all(one != other for one, other in zip(before, after))


def test_a_generator_of_another_tokenizers_codes_is_refused(tmp_path):
    for name in ("one", "same", "other"):
        make_tokenizer().save_pretrained(tmp_path / name / "latents" / "tokenizer")
    randomised(make_tokenizer(), 4).save_pretrained(tmp_path / "other" / "latents" / "tokenizer")
    check_same_codes(tmp_path / "same" / "generator", tmp_path / "one" / "generator")
    check_same_codes(tmp_path / "published", tmp_path / "one" / "generator")  # nothing is known of it
    with pytest.raises(ValueError, match="codes of another tokenizer"):
        check_same_codes(tmp_path / "other" / "generator", tmp_path / "one" / "generator")


class Network(torch.nn.Linear):
    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.state_dict(), folder / "weights")


class OneNetwork(Denoise):
    """A task whose one player is called network."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.players = {"network": Network(6, 6)}

    def turns(self, batch, draws, step):
        yield "network", {"square": (self.players["network"](batch.x) - batch.x).square().mean()}


def test_milestones_are_the_averages_of_those_steps_also_after_a_restart(tmp_path):
    from pipeline.recipes.loops import Loop
    from pipeline.training.loop import TrainingRun, train

    loop = Loop(steps=6, lr={"network": 1e-2}, batch=8, save_every=2, log_every=100)
    accelerator, ends = Accelerator(cpu=True), {}
    for steps in (3, 5):
        run = TrainingRun(replace(loop, steps=steps), tmp_path / f"{steps}", 1, Accelerator(cpu=True))
        ends[steps] = train(OneNetwork(), Numbers(), run)["network"]
    keep = Milestones((3, 5), tmp_path / "run", accelerator)
    for part in (replace(loop, steps=4), loop):
        run = TrainingRun(part, tmp_path / "run", 1, Accelerator(cpu=True), after_step=keep)
        train(OneNetwork(), Numbers(), run)
    for steps, end in ends.items():
        kept = torch.load(milestone(tmp_path / "run", steps) / "weights")
        assert torch.equal(kept["weight"], end.weight)

"""The loop's promises: exact accumulation and resume, processes that agree, a guard against non-finite steps."""

import json
import random
import time
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from support.loop_task import Denoise, Numbers, fit, weights
from support.processes import Started, start_script, start_two

from pipeline.components import build
from pipeline.recipes.adversary import Adversary
from pipeline.recipes.loops import Loop, Rate
from pipeline.recipes.tokenizer_training import Phase
from pipeline.training import checkpoints
from pipeline.training.ema import Average
from pipeline.training.loop import Interrupted
from pipeline.training.order import BatchOrder, MicroBatches
from pipeline.training.overfitting import read_previews
from pipeline.training.rates import learning_rate
from pipeline.training.reconstruction import Reconstruction

SCRIPT = Path(__file__).parents[1].joinpath("support", "loop_task.py")


def start(folder: Path, *arguments: object) -> Started:
    """The training of the script in `folder`."""
    return start_script(SCRIPT, folder, *arguments, log=folder.with_suffix(".log"))


def test_accumulation_is_exact(tmp_path):
    whole, parts = fit(tmp_path / "a"), fit(tmp_path / "b", accumulate=4)
    torch.testing.assert_close(weights(whole), weights(parts), atol=1e-6, rtol=0)


def test_resume_is_exact_to_the_bit(tmp_path):
    straight = fit(tmp_path / "a")
    fit(tmp_path / "b", steps=5, save_every=5)
    assert torch.equal(weights(straight), weights(fit(tmp_path / "b")))


def test_a_killed_run_ends_with_the_same_weights(tmp_path):
    start(tmp_path / "whole", 40, 4).finish()
    process = start(tmp_path / "killed", 40, 4, 0.05)
    while not checkpoints.finished(tmp_path / "killed"):
        time.sleep(0.02)
    time.sleep(random.random())
    process.process.kill()
    process.wait()
    assert not (tmp_path / "killed" / "weights_0.pt").exists()
    start(tmp_path / "killed", 40, 4).finish()
    saved = [torch.load(tmp_path / name / "weights_0.pt", weights_only=True) for name in ("whole", "killed")]
    assert torch.equal(*saved)
    lines = [json.loads(line)["step"] for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert lines == sorted(set(lines)) and lines[-1] == 40


def test_sigterm_saves_and_the_same_command_resumes(tmp_path):
    start(tmp_path / "whole", 90, 0).finish()
    process = start(tmp_path / "stopped", 90, 0, 0.1)
    while not (tmp_path / "stopped").exists() and process.process.is_alive():
        time.sleep(0.02)
    time.sleep(1.0)
    process.process.terminate()
    process.wait()
    assert "the same command resumes" in process.printed(), process.printed()
    assert len(checkpoints.finished(tmp_path / "stopped")) == 1
    start(tmp_path / "stopped", 90, 0).finish()
    saved = [torch.load(tmp_path / name / "weights_0.pt", weights_only=True) for name in ("whole", "stopped")]
    assert torch.equal(*saved)


def test_two_processes_end_where_one_does(tmp_path):
    start(tmp_path / "one", 12, 6).finish()
    for process in start_two(SCRIPT, tmp_path / "two", 12, 6, 0, 4, log=tmp_path / "two.log"):
        process.finish()
    one = torch.load(tmp_path / "one" / "weights_0.pt", weights_only=True)
    ranks = [torch.load(tmp_path / "two" / f"weights_{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert torch.equal(*ranks)
    torch.testing.assert_close(one, ranks[0], atol=1e-6, rtol=0)
    assert [row.step for row in read_previews(tmp_path / "two")] == [4, 8, 12]
    assert (tmp_path / "two" / "pictures" / "latest.png").is_file()


def test_interruption_is_an_exception_with_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.training.loop.any_process", lambda accelerator, here, step: step == 7)
    with pytest.raises(Interrupted, match="step 7"):
        fit(tmp_path)
    assert [path.name for path in checkpoints.finished(tmp_path)] == ["step_00000007"]


def test_a_non_finite_step_is_left_out_and_too_many_stop_the_run(tmp_path):
    players = fit(tmp_path / "a", Denoise(poison=(3, 4)))
    assert weights(players).isfinite().all()
    with pytest.raises(FloatingPointError, match="4 steps in a row"):
        fit(tmp_path / "b", Denoise(poison=tuple(range(2, 12))), skip=3)


def test_a_training_that_ends_in_failed_steps_is_not_kept(tmp_path, caplog):
    players = fit(tmp_path / "one", Denoise(poison=(11,)))
    assert weights(players).isfinite().all() and "the last of 12 steps was skipped" in caplog.text
    for _ in range(2):  # the second time from the checkpoint of the last step
        with pytest.raises(FloatingPointError, match="the last 3 of 12 steps"):
            fit(tmp_path / "three", Denoise(poison=(2, 9, 10, 11)))


def test_an_average_that_is_not_finite_is_not_kept(tmp_path):
    task = Denoise()
    task.players["maker"].register_buffer("seen", torch.tensor(torch.nan))
    with pytest.raises(FloatingPointError, match=r"the average of the maker is not finite \(seen\)"):
        fit(tmp_path, task)


def test_the_last_checkpoints_are_kept(tmp_path):
    fit(tmp_path, steps=8, save_every=2, keep=2)
    assert [path.name for path in checkpoints.finished(tmp_path)] == ["step_00000006", "step_00000008"]


def test_ranks_that_differ_are_refused(monkeypatch):
    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(type(accelerator), "num_processes", 2)
    monkeypatch.setattr(checkpoints, "gather_object", lambda sums: [*sums, [one + 1e-9 for one in sums[0]]])
    with pytest.raises(RuntimeError, match="maker have drifted apart"):
        checkpoints.assert_equal_ranks(accelerator, Denoise().players)


def test_ranks_and_micro_batches_share_the_batch_without_overlap():
    places = [MicroBatches(24, 3, rank, 2).positions(micro) for micro in range(3) for rank in range(2)]
    assert sorted(sum((list(range(24))[p] for p in places), [])) == list(range(24))
    with pytest.raises(ValueError, match="does not divide"):
        MicroBatches(10, 3)


def test_order_visits_everything_once_an_epoch_and_depends_on_the_seed():
    order = BatchOrder(10, 4, seed=0)
    seen = torch.cat([order.indices(step) for step in range(5)])
    assert sorted(seen[:10].tolist()) == sorted(seen[10:].tolist()) == list(range(10))
    assert not torch.equal(seen[:10], seen[10:])
    assert torch.equal(BatchOrder(10, 4, seed=0).indices(3), order.indices(3))
    assert not torch.equal(BatchOrder(10, 4, seed=1).indices(3), order.indices(3))
    assert len(order.seeds(0).unique()) == 4 and not torch.equal(order.seeds(0), order.seeds(1))


def test_the_rate_warms_up_and_decays():
    rate = Loop(steps=110, lr={"a": 1.0}, warmup=10, schedule="cosine", final=0.1).rate_of("a")
    assert learning_rate(rate, 0, 110) == pytest.approx(0.1) and learning_rate(rate, 9, 110) == pytest.approx(1.0)
    assert learning_rate(rate, 60, 110) == pytest.approx(0.55) and learning_rate(rate, 110, 110) == pytest.approx(0.1)


def test_a_player_has_a_rate_and_a_clock_of_its_own(tmp_path):
    own = Rate(8.0, first=0.125, warmup=4, hold=2, schedule="linear", end=10, final=0.25)
    loop = Loop(20, {"maker": 1.0, "judge": own}, warmup=2, schedule="cosine")
    at = [learning_rate(loop.rate_of("judge"), step, 15) for step in (-1, 0, 3, 4, 5, 8, 10, 14)]
    assert at == pytest.approx([0, 8 * (0.125 + 0.875 / 4), 8, 8, 8, 8 * 0.625, 2, 2])
    assert loop.rate_of("judge") == own and loop.rate_of("maker") == Rate(1.0, 0.0, 2, 0, "cosine", None, 0.0)
    late = Denoise()
    late.starts = {"judge": 6}
    rates = {"maker": Rate(1e-2), "judge": Rate(1e-2, schedule="linear", warmup=2)}
    fit(tmp_path, late, lr=rates, log_every=1)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["judge/lr"] for line in lines][:9] == pytest.approx([0] * 6 + [5e-3, 1e-2, 1e-2])
    assert lines[-1]["judge/lr"] == pytest.approx(1e-2 * 1 / 4), "it falls over the six steps of its own"
    assert {line["maker/lr"] for line in lines} == {1e-2}


def test_a_critic_s_clock_begins_when_its_training_does():
    adversary = Adversary({"kind": "patch"}, start=7, ahead=3)
    assert adversary.first == 4 and not adversary.learns(3) and adversary.learns(4)
    critic = build("critics", {"kind": "patch", "width": 8, "layers": 1})
    node = {"kind": "conv_autoencoder", "width": 8, "multipliers": [1, 2], "blocks": 1, "groups": 4}
    tokenizer = build("tokenizers", node | {"bottleneck": {"kind": "gaussian", "dim": 4}}, image_size=16)
    rates = {"tokenizer": 1e-3, "critic": 1e-3}
    phase = Phase(Loop(9, rates), {"pixel": 1.0, "kl": 1.0, "adversarial": 0.1}, adversary=adversary)
    task = Reconstruction(tokenizer, phase, {"pixel": build("losses", {"kind": "pixel"})}, critic)
    assert task.starts == {"critic": 4}


def test_matrices_decay_but_those_of_the_names_that_do_not(tmp_path):
    """A decayed weight is smaller by rate times decay of itself, a step, than one that is spared."""
    first = Denoise().players["judge"][0].weight.detach().clone()
    tasks = {}
    for name, part in (("decayed", "judge.9"), ("spared", "0.weight")):
        tasks[name] = Denoise()
        names = () if name == "decayed" else (part,)
        fit(tmp_path / name, tasks[name], steps=1, clip=1e-12, weight_decay={"judge": 0.5}, undecayed=names)
    moved = {name: task.players["judge"][0].weight.detach() for name, task in tasks.items()}
    torch.testing.assert_close(moved["spared"] - moved["decayed"], 0.005 * first, atol=1e-6, rtol=1e-3)
    with pytest.raises(ValueError, match="loop.undecayed: no trained parameter has 'embed' in its name"):
        fit(tmp_path / "typo", undecayed=("embed",))


def test_an_average_without_warm_up_moves_the_same_at_every_step():
    torch.manual_seed(0)
    first = torch.nn.Linear(2, 2)
    average, moved = Average(first, decay=0.9, warmup=False), torch.nn.Linear(2, 2)
    average.update(moved, 1)
    torch.testing.assert_close(average.module.weight.data, 0.9 * first.weight.data + 0.1 * moved.weight.data)


def test_the_average_is_fp32_and_covers_buffers():
    module = torch.nn.BatchNorm1d(2).bfloat16()
    average = Average(module, decay=0.5)
    module.weight.data += 1
    module.running_mean += 2
    module.num_batches_tracked += 3
    for step in (1, 2):
        average.update(module, step)
    assert average.module.weight.dtype == torch.float32
    kept = (2 / 11) * (3 / 12)  # (1 + step) / (10 + step), smaller than the decay this early
    torch.testing.assert_close(average.module.weight.data, torch.full((2,), 2 - kept))
    torch.testing.assert_close(average.module.running_mean, torch.full((2,), 2 * (1 - kept)))
    assert average.module.num_batches_tracked == 3


def test_data_is_read_by_workers_in_the_same_order(tmp_path):
    plain, worked = Denoise(), Denoise()
    fit(tmp_path / "a", plain, steps=3)
    from pipeline.training.loop import TrainingRun, train

    loop = Loop(steps=3, batch=8, lr={"maker": 1e-2, "judge": 1e-2})
    train(worked, Numbers(), TrainingRun(loop, tmp_path / "b", 3, Accelerator(cpu=True), workers=1))
    assert all(torch.equal(a, b) for a, b in zip(plain.seen, worked.seen, strict=True))


def test_each_player_may_have_an_average_of_its_own(tmp_path):
    late, both = (fit(tmp_path / name, ema=ema) for name, ema in (("late", {"judge": 0.9}), ("both", 0.9)))
    task = Denoise()
    last = fit(tmp_path / "last", task, ema={"judge": 0.9})["maker"]
    assert torch.equal(weights({"maker": last}), weights({"maker": task.players["maker"]}))
    assert torch.equal(weights({"judge": late["judge"]}), weights({"judge": both["judge"]}))
    assert not torch.equal(weights({"maker": late["maker"]}), weights({"maker": both["maker"]}))
    with pytest.raises(ValueError, match=r"ema\.jugde: .*judge"):
        fit(tmp_path / "wrong", ema={"jugde": 0.9})

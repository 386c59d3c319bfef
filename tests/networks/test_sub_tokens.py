"""The head that emits a token's ids one after another: what each may see, its dropout, and its published sizes."""

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from pipeline.code import Condition
from pipeline.components import build
from pipeline.draws import StepDraws
from pipeline.networks.causal_transformer import CausalTransformer
from pipeline.recipes.files import CONFIGS

SIZE = {"vocab": 11, "num_classes": 5, "depth": 2, "width": 16, "heads": 2, "codebooks": 3, "head_depth": 2}


def network(**changes) -> CausalTransformer:
    model = CausalTransformer([2, 3], **(SIZE | changes))
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return model.eval()


def ids(batch: int = 2) -> Tensor:
    return torch.randint(11, (batch, 6, 3), generator=torch.Generator().manual_seed(2))


def asked(batch: int = 2) -> Condition:
    return Condition(labels=torch.arange(batch))


@pytest.mark.parametrize("rotary", [{"prefix_rotary": "zero"}, {}, {"position": "learned"}], ids=str)
def test_an_id_is_told_the_ids_of_its_token_before_it_and_no_later_one(rotary):
    model = network(**rotary)
    with torch.no_grad():
        before = model(ids(), asked())
        for codebook in range(3):
            changed = ids()
            changed[:, 2, codebook] = (changed[:, 2, codebook] + 1) % 11
            moved = (model(changed, asked()) != before).any(dim=-1).any(dim=0)  # [N, codebooks]
            expected = torch.zeros(6, 3, dtype=torch.bool)
            expected[2, codebook + 1 :], expected[3:] = True, True
            assert torch.equal(moved, expected)


def test_choosing_one_after_another_is_the_whole_pass():
    model, seen, last = network(prefix_rotary="zero"), [], None
    memory = model.begin(2, asked())
    with torch.no_grad():
        for place in range(6):

            def choose(logits: Tensor, codebook: int, place: int = place) -> Tensor:
                seen.append(logits)
                return ids()[:, place : place + 1, codebook]

            last = model.advance(memory, last, choose)
            assert torch.equal(last, ids()[:, place])
        whole = model(ids(), asked())
    torch.testing.assert_close(torch.cat(seen, dim=1).unflatten(1, (6, 3)), whole)


def test_dropout_in_the_head_is_of_single_places_and_a_function_of_its_draws():
    model = network(residual_dropout=0.5).train()
    draws = [StepDraws(0, step, slice(0, 2), 2) for step in (0, 0, 1)]
    with torch.no_grad():
        states, told = torch.zeros(2, 6, 16), model.told()
        outputs = [model.head(states, torch.zeros_like(ids()), *told, draw) for draw in draws]
        plain = model.head(states, torch.zeros_like(ids()), *told)
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])
    assert (plain == plain[:1, :1]).all()  # alike at every place without dropout
    assert len({tuple(row.flatten().tolist()) for row in outputs[0].flatten(0, 1)}) == 12


def test_checkpointing_changes_no_gradient():
    found = []
    for enable in (False, True):
        model = network(residual_dropout=0.2).train()
        if enable:
            model.enable_gradient_checkpointing()
        model(ids(), asked(), dropout=StepDraws(0, 0, slice(0, 2), 2)).square().mean().backward()
        found.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    assert len(found[0]) == len(found[1]) and all(torch.equal(one, other) for one, other in zip(*found))


@pytest.mark.parametrize("name, millions", [("far_b", 415), ("far_l", 898)])
def test_published_sizes(name, millions):
    node = OmegaConf.to_container(OmegaConf.load(CONFIGS / "networks" / f"{name}.yaml"))["generator"]["network"]
    with torch.device("meta"):
        model = build("networks", node, grid=[16, 16], vocab=16_384, codebooks=2, num_classes=1000)
    count = sum(parameter.numel() for parameter in model.parameters())
    joined = sum(parameter.numel() for parameter in model.token_embedding.joined.parameters())
    assert round((count - joined) / 1e6) == millions  # the published counts are met without it


def test_a_grid_with_fewer_places_than_ids_is_refused():
    with pytest.raises(ValueError, match="a head over 3 ids"):
        CausalTransformer([1], **SIZE)

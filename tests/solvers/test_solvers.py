"""Solvers as a slot: chosen by name among those of an objective's problem, with flat settings."""

import pytest

from pipeline.components import kinds
from pipeline.objectives.flow_matching import FlowMatching, FlowSampling
from pipeline.objectives.gaussian_diffusion import GaussianDiffusion
from pipeline.solvers.base import solvers_of
from pipeline.solvers.ddim import Ddim
from pipeline.solvers.euler import Euler
from pipeline.solvers.sde import Sde


def test_every_solver_is_one_of_a_problem_that_an_objective_has():
    flow, chain = solvers_of(FlowMatching.solves), solvers_of(GaussianDiffusion.solves)
    assert sorted([*flow, *chain]) == kinds("solvers") and not set(flow) & set(chain)


def test_flat_values_are_those_of_the_objective_and_of_the_solver():
    read = FlowMatching().read_settings
    assert read({}) == FlowSampling(Euler())
    assert read({"solver": "sde", "shift": 2, "last_step": "none"}) == FlowSampling(Sde(last_step="none"), shift=2.0)
    assert GaussianDiffusion().read_settings({"solver": "ddim", "eta": 1}).solver == Ddim(1.0)
    assert read({"solver": "heun", "diffusion": "sigma"}) == read({"solver": "heun"})  # the default changes nothing


@pytest.mark.parametrize(
    "stated, message",
    [
        ({"solver": "rk4"}, "at.solver: 'rk4' is not one of dpmpp_2m, euler"),
        ({"solver": "ddim"}, "at.solver: 'ddim' is not one of dpmpp_2m, euler"),
        ({"solver": "sde", "last_stpe": "none"}, "at.last_stpe: there is no such setting; did you mean 'last_step'"),
        ({"solver": "sde", "last_step": "nine"}, "at.last_step: 'nine' is not one of mean"),
        ({"solver": "heun", "diffusion": "path"}, "at.diffusion is a setting of solver=sde or sde_heun; choose it"),
    ],
)
def test_what_the_chosen_solver_does_not_have_is_one_line(stated, message):
    with pytest.raises(ValueError) as error:
        FlowMatching().read_settings(stated, "at")
    assert message in str(error.value) and "\n" not in str(error.value)

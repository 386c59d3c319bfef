"""Adversarial losses: which way each pushes, and their values by hand."""

import pytest
import torch

from pipeline.adversarial.base import loss_node
from pipeline.adversarial.hinge import Hinge
from pipeline.adversarial.least_squares import LeastSquares
from pipeline.adversarial.nonsaturating import NonSaturating
from pipeline.checks.recipe import check_recipe
from pipeline.components import build, kinds
from pipeline.recipes.adversary import Adversary
from pipeline.recipes.schema import load

ADVERSARY = "tokenizer.phases.main.adversary"
RECIPE = [
    f"{ADVERSARY}={{critic: {{kind: patch, width: 8, layers: 1}}}}",
    "tokenizer.phases.main.weights.adversarial=0.1",
    "tokenizer.phases.main.loop.lr.critic=1e-3",
]


@pytest.mark.parametrize("kind", kinds("adversarial"))
def test_the_critic_learns_real_from_fake_and_the_generator_the_other_way(kind):
    loss = build("adversarial", {"kind": kind})
    real, fake = (torch.full((4,), 0.5, requires_grad=True) for _ in range(2))
    sum(loss.critic_loss(real, fake).values()).backward()
    assert (real.grad < 0).all() and (fake.grad > 0).all()  # descent raises real and lowers fake
    judged = torch.zeros(4, requires_grad=True)
    loss.generator_loss(judged).backward()
    assert (judged.grad < 0).all()


def test_hinge_by_hand():
    loss, real, fake = Hinge(), torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 1.0])
    assert sum(loss.critic_loss(real, fake).values()) == 0.5 * 0.5 + 0.5 * 1.0
    assert loss.generator_loss(fake) == 1.0
    assert loss.critic_loss(real + 5, fake - 5) == {"real": 0, "fake": 0}


def test_the_other_losses_by_hand():
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 1.0])
    halves = LeastSquares().critic_loss(real, fake)
    assert halves == {"real": 0.5 * (1 + 1) / 2, "fake": 0.5 * (9 + 1) / 2}
    assert LeastSquares().generator_loss(fake) == (16 + 0) / 2
    even = torch.zeros(3)  # a critic that cannot tell has log 2 on both sides
    for value in (*NonSaturating().critic_loss(even, even).values(), NonSaturating().generator_loss(even) / 2):
        torch.testing.assert_close(value, torch.tensor(0.5 * 0.6931472))


def test_a_recipe_names_the_loss_by_its_kind_or_as_a_node():
    for stated in ("nonsaturating", "{kind: least_squares}"):
        check_recipe(load("digits", [*RECIPE, f"{ADVERSARY}.loss={stated}"]))
    assert loss_node(Adversary(critic={"kind": "patch"}).loss) == {"kind": "hinge"}
    for stated, words in (
        ("hing", f"^{ADVERSARY}.loss: there is no kind 'hing'; did you mean 'hinge'"),
        ("{kind: hinge, margin: 2}", f"^{ADVERSARY}.loss: hinge has no argument 'margin'"),
    ):
        with pytest.raises(ValueError, match=words):
            check_recipe(load("digits", [*RECIPE, f"{ADVERSARY}.loss={stated}"]))

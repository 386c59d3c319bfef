"""Which task trains a recipe's tokenizer and generator together."""

from collections.abc import Callable

from pipeline.critics.base import Critic
from pipeline.losses.base import Loss
from pipeline.nn.code_usage import CodeUsage
from pipeline.nn.running_norm import RunningNorm
from pipeline.recipes.joint_training import JointTraining as Section
from pipeline.tokenizers.base import Tokenizer
from pipeline.training.generation import Generation
from pipeline.training.joint import JointTraining
from pipeline.training.soft_codes import SoftCodeTraining


def build_joint_task(
    tokenizer: Tokenizer,
    part: Section,
    losses: dict[str, Loss],
    critic: Critic | None,
    generation: Generation,
    make_norm: Callable[[], RunningNorm],
    usage: CodeUsage | None = None,
) -> JointTraining | SoftCodeTraining:
    """The task of the section `joint`; `make_norm` measures the scale of continuous codes, `usage` counts ids."""
    players = tokenizer, part.phase, losses, critic, generation
    if part.soft is not None:
        return SoftCodeTraining(*players, part.soft, part.alignment, usage)
    return JointTraining(*players, make_norm(), part.alignment)

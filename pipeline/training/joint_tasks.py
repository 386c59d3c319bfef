"""Which task trains a recipe's tokenizer and generator together."""

from collections.abc import Callable

from pipeline.critics.base import Critic
from pipeline.losses.base import Loss
from pipeline.nn.code_usage import make_code_usage
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
    images: int,
) -> JointTraining | SoftCodeTraining:
    """The task of the section `joint`, on so many images.

    `make_norm` measures the scale of continuous codes, which ids have not.
    """
    players = tokenizer, part.phase, losses, critic, generation
    if part.soft is not None:
        loop = part.phase.loop
        usage = make_code_usage(tokenizer.spec, min(images, loop.steps * loop.batch), part.phase.least_usage)
        return SoftCodeTraining(*players, part.soft, part.alignment, usage)
    return JointTraining(*players, make_norm(), part.alignment)

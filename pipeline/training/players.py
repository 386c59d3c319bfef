"""Players made ready for this machine: on its device, compiled, wrapped or divided, each with its optimiser."""

from collections.abc import Collection

from accelerate import Accelerator
from diffusers import ModelMixin
from torch import nn

from pipeline.checks.phase import check_loop
from pipeline.recipes.loops import Loop
from pipeline.runs.sharding import Sharding
from pipeline.training.checkpoints import Progress
from pipeline.training.compiling import compile_in_place
from pipeline.training.optimizing import check_divisible, check_undecayed, make_optimizer
from pipeline.training.sharding import blocks_of, divide
from pipeline.training.task import Task
from pipeline.validation import at


def prepare(task: Task, loop: Loop, progress: Progress, accelerator: Accelerator, sharding: Sharding | None) -> None:
    """Bring players and averages to the device, wrap or divide them in place, and make their optimisers.

    With `sharding` the blocks of every player are divided that is no judge of another.
    """
    with at("loop"):
        check_loop(loop, task.players, any(task.new.values()))
        check_undecayed(loop, task.players)
    for name, player in task.players.items():
        player.to(accelerator.device).train()
        if loop.checkpointing:
            checkpoint_blocks(player)
        if loop.compile:
            compile_in_place(player)
        average = progress.averages[name]
        if sharding is not None and name not in task.judges and any(blocks_of(player)):
            with at("loop"):
                check_divisible(loop, name)
            undivided = names_of(task.compared, player)
            average.divide(sharding, accelerator.device, undivided)
            divide(player, sharding, accelerator.device, undivided)
        else:
            average.module.to(accelerator.device)
            task.players[name] = accelerator.prepare(player)
        progress.optimizers[name] = make_optimizer(loop, name, player, task.new.get(name, ()))


def checkpoint_blocks(player: nn.Module) -> None:
    """Have the blocks of a player's models computed again on the way back, in place of keeping what they made.

    A critic keeps it: its norms move with each pass, and it is small.
    """
    for module in player.modules():
        if isinstance(module, ModelMixin) and module._supports_gradient_checkpointing:
            module.enable_gradient_checkpointing()


def names_of(parameters: Collection[nn.Parameter], module: nn.Module) -> list[str]:
    """The names of those parameters that are in the module."""
    wanted = {id(parameter) for parameter in parameters}
    return [name for name, parameter in module.named_parameters() if id(parameter) in wanted]

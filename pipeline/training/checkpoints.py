"""Checkpoints of a training under way: written whole, the last few kept, never published.

All is in safetensors and JSON, so that reading a checkpoint runs nothing, whoever wrote it.
"""

import json
import random
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.files.checksums import check_content, recorded_in, write_checksums
from pipeline.files.writing import read_json, remove_folder, replace_folder, write_json, write_tensors
from pipeline.nn.devices import current_device, random_states, set_random_states
from pipeline.training.ema import Average
from pipeline.training.sharding import divided_as, local, whole

FOLDER = "checkpoints"
PROGRESS = "progress.json"


class Progress:
    """All that a resumed training needs besides the players."""

    def __init__(self, averages: dict[str, Average]):
        self.step, self.skipped, self.averages = 0, 0, averages
        self.optimizers: dict[str, torch.optim.Optimizer] = {}  # by player
        self.scaler: torch.amp.GradScaler | None = None  # of the losses, in fp16

    def modules(self) -> dict[str, nn.Module]:
        """The average of every player, whole."""
        return {name: average.whole() for name, average in self.averages.items()}


def save(accelerator: Accelerator, folder: Path, progress: Progress, players: dict[str, nn.Module], keep: int) -> None:
    """Write `step_00000500/` under another name, rename it once complete, and remove all but the last `keep`."""
    assert_equal_ranks(accelerator, players)
    draft = folder / FOLDER / f"draft_{progress.step:08d}"
    if accelerator.is_main_process:
        draft.mkdir(parents=True, exist_ok=True)
    accelerator.wait_for_everyone()
    write_random_states(draft / f"random_{accelerator.process_index}.safetensors")
    write_state(draft, accelerator, progress, players)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_checksums(draft)
        replace_folder(draft, folder / FOLDER / f"step_{progress.step:08d}")
        for old in finished(folder)[:-keep]:
            remove_folder(old)
    accelerator.wait_for_everyone()


def restore(accelerator: Accelerator, folder: Path, progress: Progress, players: dict[str, nn.Module]) -> None:
    """Load the newest whole checkpoint in `folder`, if there is one, into the players and `progress`.

    One that is damaged is named in a line, and the one before is taken. Raises ValueError where none is whole.
    """
    if accelerator.is_main_process:
        for draft in [*(folder / FOLDER).glob("draft_*"), *(folder / FOLDER).glob(".*")]:
            shutil.rmtree(draft)
    accelerator.wait_for_everyone()
    if (checkpoint := newest_whole(accelerator, folder)) is None:
        return
    for name, player in players.items():
        plain = accelerator.unwrap_model(player)
        load_weights(plain, load_file(checkpoint / f"{name}.safetensors"))
        load_weights(progress.averages[name].module, load_file(checkpoint / f"{name}.average.safetensors"))
        load_moments(progress.optimizers[name], plain, load_file(checkpoint / f"{name}.optimizer.safetensors"))
    state = read_json(checkpoint / PROGRESS)
    progress.step, progress.skipped = state["step"], state["skipped"]
    if progress.scaler is not None and state["scaler"] is not None:
        progress.scaler.load_state_dict(state["scaler"])
    states = checkpoint / f"random_{accelerator.process_index}.safetensors"
    if states.exists():  # there are more processes now where it does not
        restore_random_states(states)


def newest_whole(accelerator: Accelerator, folder: Path) -> Path | None:
    """The newest checkpoint that is as it was written, the same in all processes; None where there is none at all."""
    there, whole = finished(folder), -1
    if accelerator.is_main_process:
        whole = next((number for number in reversed(range(len(there))) if is_whole(there[number])), -1)
    if accelerator.num_processes > 1:
        part = whole if accelerator.is_main_process else 0
        whole = int(accelerator.reduce(torch.tensor(part, device=accelerator.device), "sum"))
    if there and whole < 0:
        raise ValueError(f"no checkpoint in {folder / FOLDER} is whole; delete that folder to train from the beginning")
    return there[whole] if there else None


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint is as it was written; what is wrong with it is printed where it is not."""
    try:
        if PROGRESS not in recorded_in(checkpoint):
            raise ValueError(f"{checkpoint} is damaged, or of another version")
        check_content(checkpoint, "the training continues from an earlier checkpoint, where there is one")
    except ValueError as error:
        print(f"{checkpoint.name} is left out: {error}")
        return False
    return True


def finished(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted((folder / FOLDER).glob("step_*"))


def write_state(draft: Path, accelerator: Accelerator, progress: Progress, players: Mapping[str, nn.Module]) -> None:
    """What all processes have alike, whole: players, averages, optimisers' moments, progress; the main one writes."""
    for name, player in players.items():
        plain = accelerator.unwrap_model(player)
        parts = {
            f"{name}.safetensors": plain.state_dict(),
            f"{name}.average.safetensors": progress.averages[name].module.state_dict(),
            f"{name}.optimizer.safetensors": moments_of(progress.optimizers[name], plain),
        }
        for file, tensors in parts.items():
            tensors = separate(tensors, accelerator.is_main_process)
            if accelerator.is_main_process:
                write_tensors(draft / file, tensors)
    if accelerator.is_main_process:
        scaler = None if progress.scaler is None else progress.scaler.state_dict()
        values = {"step": progress.step, "skipped": progress.skipped, "scaler": scaler}
        write_json(draft / PROGRESS, values, indent=None)


def separate(tensors: Mapping[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """The tensors as safetensors takes them: whole, contiguous, and none in the memory of another.

    Parts are brought together by all processes; one that does not `keep` the whole gets nothing.
    """
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        tensor = whole(tensor.detach())
        if keep:
            tensor = tensor.cpu().contiguous()
            place = tensor.untyped_storage().data_ptr()
            result[name] = tensor.clone() if place in seen else tensor
            seen.add(place)
    return result


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load whole tensors into a module, of which each process may have a part; RuntimeError where names differ."""
    state = module.state_dict()
    module.load_state_dict({name: divided_as(t, state[name]) if name in state else t for name, t in tensors.items()})


def moments_of(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """The state of an optimiser of the module's parameters, by `<parameter>.<key>`."""
    return {
        f"{name}.{key}": value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.int64)
        for name, parameter in module.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_moments(optimizer: torch.optim.Optimizer, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `moments_of`; every moment lies in memory, and is divided, as its parameter is."""
    updated = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    number = {id(parameter): index for index, parameter in enumerate(updated)}
    parameters, state = dict(module.named_parameters()), {}
    for place, tensor in tensors.items():
        name, _, key = place.rpartition(".")
        parameter = parameters[name]
        if tensor.shape == parameter.shape:  # a fused update reads both in the order of memory
            tensor = divided_as(tensor, torch.empty_like(parameter, dtype=tensor.dtype))
        count = tensor.ndim == 0 and tensor.dtype == torch.int64  # a number of steps that is no tensor
        state.setdefault(number[id(parameter)], {})[key] = int(tensor) if count else tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def write_random_states(file: Path) -> None:
    """The states of this process's global random generators."""
    version, words, gauss = random.getstate()
    kind, numbers, *rest = np.random.get_state()
    tensors = {"python": torch.tensor(words), "numpy": torch.from_numpy(numbers.astype(np.int64))}
    tensors |= {"torch": torch.get_rng_state()}
    device = current_device()
    tensors |= {f"{device.type}.{number}": state for number, state in enumerate(random_states(device))}
    write_tensors(file, tensors, {"rest": json.dumps([version, gauss, kind, *rest])})


def restore_random_states(file: Path) -> None:
    with safe_open(file, framework="pt") as stored:
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        version, gauss, kind, *rest = json.loads(stored.metadata()["rest"])
    random.setstate((version, tuple(tensors["python"].tolist()), gauss))
    np.random.set_state((kind, tensors["numpy"].numpy().astype(np.uint32), *rest))
    torch.set_rng_state(tensors["torch"])
    device = current_device()
    names = sorted((name for name in tensors if name.startswith(f"{device.type}.")), key=len)
    set_random_states(device, [tensors[name] for name in names])


def assert_equal_ranks(accelerator: Accelerator, players: dict[str, nn.Module]) -> None:
    """RuntimeError when the processes do not hold the same weights, of those that are whole in each."""
    if accelerator.num_processes == 1:
        return
    for name, player in players.items():
        undivided = [p.detach().cpu() for p in player.parameters() if local(p) is p]
        everyone = gather_object([[float(p.double().abs().sum()) for p in undivided]])
        if any(sums != everyone[0] for sums in everyone):
            raise RuntimeError(f"the processes' copies of the {name} have drifted apart; nothing was saved")

"""Nets that losses train beside a tokenizer or a network: one player of the training, apart again when it is saved."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.bottlenecks.base import Bottleneck
from pipeline.code import Code, Condition
from pipeline.draws import Draws
from pipeline.losses.base import Loss
from pipeline.nn.module_outputs import outputs_of
from pipeline.tokenizers.base import Perturb, Rebuilt, Tokenizer
from pipeline.whole_files import write_tensors

FOLDER = "heads"
log = logging.getLogger(__name__)


class WithHeads(nn.Module):
    """A tokenizer and the heads of its losses, by term, run in one pass, as what averages gradients needs it.

    A head sees the code, or what the module of the tokenizer makes that its loss names by `at`.
    """

    def __init__(self, model: Tokenizer, losses: Mapping[str, Loss]):
        super().__init__()
        self.model = model
        self.heads = nn.ModuleDict({term: loss.head for term, loss in losses.items()})
        self.at = {term: name for term, loss in losses.items() if (name := getattr(loss, "at", None)) is not None}

    def forward(
        self,
        images: Tensor,
        condition: Condition | None = None,
        draws: Draws | None = None,
        perturb: Perturb | None = None,
        **asked: Any,
    ) -> Rebuilt:
        """As the tokenizer's, with `decoder_input` and `head_outputs` filled."""
        shown: list[Tensor] = []

        def watched(neck: Bottleneck, h: Tensor, code: Code) -> Tensor:
            shown.append(perturb(neck, h, code))
            return shown[-1]

        if perturb is not None:
            asked["perturb"] = watched
        with outputs_of(self.model, self.at.values()) as outputs:
            rebuilt = self.model(images, condition, draws, **asked)
        z = rebuilt.code.z
        rebuilt = replace(rebuilt, decoder_input=in_place(shown[0], z, rebuilt.features) if shown else None)
        made = {
            term: self.heads[term](self.model.position_tokens(name, outputs[name])) for term, name in self.at.items()
        }
        for term, head in self.heads.items():
            if term not in made:
                made[term] = head(z, rebuilt.decoder_input, rebuilt.features, draws)
        return replace(rebuilt, head_outputs=made)


class Tapped(nn.Module):
    """A generator's network and the heads of its losses, by term, each at the hidden states after a block of its own.

    A loss without a head has the hidden states themselves.
    """

    def __init__(self, model: nn.Module, losses: Mapping[str, Loss]):
        super().__init__()
        self.model = model
        self.heads = nn.ModuleDict({term: loss.head or nn.Identity() for term, loss in losses.items()})
        self.blocks = {term: loss.block for term, loss in losses.items()}

    def forward(self, *asked: Any, predict: bool = True) -> tuple[Tensor | None, dict[str, Tensor]]:
        """What the network predicts of what it is asked, and by term what its head makes, [B, N, C].

        Without `predict` no more of the network is run than the heads read.
        """
        taps, prediction = tuple(self.blocks.values()), None
        if predict:
            prediction, states = self.model(*asked, taps=taps)
        else:
            states = self.model.tapped(*asked, taps)
        return prediction, {term: self.heads[term](state) for term, state in zip(self.blocks, states)}


def in_place(shown: Tensor, z: Tensor, features: Mapping[str, Tensor]) -> Tensor:
    """What the decoder was shown of the places that were kept, at these places of z [B, N, C]; 0 at the others."""
    if shown.shape[1] == z.shape[1] or "kept" not in features:
        return shown
    return torch.zeros_like(z).masked_scatter(features["kept"][:, :, None].expand_as(z), shown.to(z.dtype))


def by_term(losses: Iterable[Loss]) -> dict[str, Loss]:
    """The losses that train a head, by their term."""
    return {loss.terms[0]: loss for loss in losses if loss.head is not None}


def joined(tokenizer: Tokenizer, losses: Iterable[Loss]) -> nn.Module:
    """The player of a training: the tokenizer with the heads of its losses, or alone where none has one."""
    found = by_term(losses)
    return WithHeads(tokenizer, found) if found else tokenizer


def parted(player: nn.Module) -> tuple[Any, dict[str, nn.Module]]:
    """The model of a player, and its heads by term: the inverse of joining."""
    if isinstance(player, (WithHeads, Tapped)):
        return player.model, {term: head for term, head in player.heads.items() if list(head.parameters())}
    return player, {}


def save_heads(heads: Mapping[str, nn.Module], folder: Path) -> None:
    """One file a head, `folder/heads/<term>.safetensors`."""
    for term, head in heads.items():
        state = {name: value.contiguous() for name, value in head.state_dict().items()}
        write_tensors(folder / FOLDER / f"{term}.safetensors", state, {"format": "pt"})


def carry_heads(losses: Iterable[Loss], folders: Iterable[Path]) -> None:
    """Fill heads from the last of `folders` that has one of the same term, if it is of the same make; the log says."""
    folders = list(folders)
    for term, loss in by_term(losses).items():
        files = [folder / FOLDER / f"{term}.safetensors" for folder in folders]
        found = [file for file in files if file.is_file()]
        if not found:
            continue
        state, own = load_file(found[-1]), loss.head.state_dict()
        if {name: value.shape for name, value in state.items()} != {name: value.shape for name, value in own.items()}:
            log.warning("the head in %s is of another make than this phase's %s: a new one is trained", found[-1], term)
        else:
            loss.head.load_state_dict(state)

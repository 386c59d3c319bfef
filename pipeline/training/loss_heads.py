"""Heads that losses train beside a tokenizer or a network: one player in training, and separate files when saved."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.code import Condition
from pipeline.draws import Draws
from pipeline.files.writing import write_tensors
from pipeline.losses.base import Loss
from pipeline.nn.module_outputs import outputs_of
from pipeline.tokenizers.base import Perturb, Tokenizer, TokenizerOutput

FOLDER = "heads"
log = logging.getLogger(__name__)


class TokenizerWithHeads(nn.Module):
    """A tokenizer and the heads of its losses, by term, run in one pass, so that processes average all gradients.

    A head reads the code, or the output of the tokenizer's module that its loss is attached to.
    """

    def __init__(self, model: Tokenizer, losses: Mapping[str, Loss]):
        super().__init__()
        self.model = model
        self.heads = nn.ModuleDict({term: loss.head for term, loss in losses.items()})
        attached = {term: loss.attachment for term, loss in losses.items()}
        self.modules_of = {term: at.module for term, at in attached.items() if at.module is not None}

    def forward(
        self,
        images: Tensor,
        condition: Condition | None = None,
        draws: Draws | None = None,
        perturb: Perturb | None = None,
        **arguments: Any,
    ) -> TokenizerOutput:
        """As the tokenizer's, with `head_outputs` filled, and `decoder_input` at all positions."""
        with outputs_of(self.model, self.modules_of.values()) as outputs:
            rebuilt = self.model(images, condition, draws, perturb, **arguments)
        z, read = rebuilt.code.z, rebuilt.decoder_input
        rebuilt = replace(rebuilt, decoder_input=None if read is None else at_positions(read, z, rebuilt.features))
        tokens = {term: self.model.position_tokens(name, outputs[name]) for term, name in self.modules_of.items()}
        heads = {term: self.heads[term](one) for term, one in tokens.items()}
        for term, head in self.heads.items():
            if term not in heads:
                heads[term] = head(z, rebuilt.decoder_input, rebuilt.features, draws)
        return replace(rebuilt, head_outputs=heads)


class NetworkWithHeads(nn.Module):
    """A generator's network and the heads of its losses, by term, each at the hidden states after a block of its own.

    A loss without a head reads the hidden states themselves.
    """

    def __init__(self, model: nn.Module, losses: Mapping[str, Loss]):
        super().__init__()
        self.model = model
        self.heads = nn.ModuleDict({term: loss.head or nn.Identity() for term, loss in losses.items()})
        self.blocks = {term: loss.attachment.block for term, loss in losses.items()}
        reads_token = bool(model.config.get("class_token"))
        self.left_out = {term: int(reads_token and not loss.attachment.class_token) for term, loss in losses.items()}

    def forward(self, *arguments: Any, predict: bool = True) -> tuple[Tensor | None, dict[str, Tensor]]:
        """The network's prediction for its arguments, and by term the output of its head, [B, N, C], or with the class
        token's first [B, 1 + N, C].

        Without `predict` no more of the network is run than the heads read.
        """
        taps, prediction = tuple(self.blocks.values()), None
        if predict:
            prediction, states = self.model(*arguments, taps=taps)
        else:
            states = self.model.tap_blocks(*arguments, taps)
        tokens = {term: state[:, self.left_out[term] :] for term, state in zip(self.blocks, states)}
        return prediction, {term: self.heads[term](state) for term, state in tokens.items()}


def at_positions(perturbed: Tensor, z: Tensor, features: Mapping[str, Tensor]) -> Tensor:
    """The decoder's tokens of the positions that were kept, at these positions of z [B, N, C]; 0 at the others."""
    if perturbed.shape[1] == z.shape[1] or "kept" not in features:
        return perturbed
    return torch.zeros_like(z).masked_scatter(features["kept"][:, :, None].expand_as(z), perturbed.to(z.dtype))


def by_term(losses: Iterable[Loss]) -> dict[str, Loss]:
    """The losses that train a head, by their term."""
    return {loss.terms[0]: loss for loss in losses if loss.head is not None}


def attach_heads(tokenizer: Tokenizer, losses: Iterable[Loss]) -> nn.Module:
    """The player of a training: the tokenizer with the heads of its losses, or alone where none has one."""
    with_head = by_term(losses)
    return TokenizerWithHeads(tokenizer, with_head) if with_head else tokenizer


def detach_heads(player: nn.Module) -> tuple[Any, dict[str, nn.Module]]:
    """The model of a player, and its heads by term: the inverse of `attach_heads`."""
    if isinstance(player, (TokenizerWithHeads, NetworkWithHeads)):
        return player.model, {term: head for term, head in player.heads.items() if list(head.parameters())}
    return player, {}


def save_heads(heads: Mapping[str, nn.Module], folder: Path) -> None:
    """One file a head, `folder/heads/<term>.safetensors`."""
    for term, head in heads.items():
        state = {name: value.contiguous() for name, value in head.state_dict().items()}
        write_tensors(folder / FOLDER / f"{term}.safetensors", state, {"format": "pt"})


def carry_heads(losses: Iterable[Loss], folders: Iterable[Path]) -> None:
    """Load heads from the last of `folders` that has one of the same term; one of other shapes is not, and logged."""
    folders = list(folders)
    for term, loss in by_term(losses).items():
        files = [folder / FOLDER / f"{term}.safetensors" for folder in folders]
        saved = [file for file in files if file.is_file()]
        if not saved:
            continue
        state, needed = load_file(saved[-1]), loss.head.state_dict()
        if {name: value.shape for name, value in state.items()} != {name: v.shape for name, v in needed.items()}:
            log.warning("the head in %s is of another make than this phase's %s: a new one is trained", saved[-1], term)
        else:
            loss.head.load_state_dict(state)

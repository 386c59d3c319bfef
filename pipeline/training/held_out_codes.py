"""The codes of held-out images, made as the stored codes of training images are."""

from functools import cached_property

import torch
from torch import Tensor

from pipeline.code import Code, Condition
from pipeline.features.passes import evenly_spaced
from pipeline.images.reading import Images
from pipeline.latents.encoding import Encoder, EncodingPlan
from pipeline.latents.store import CodeBatch
from pipeline.tokenizers.base import Tokenizer
from pipeline.training.held_out import CHUNK, ROWS


class HeldOutCodes:
    """Codes of ROWS images at most, evenly through the held-out split, encoded when they are first read.

    A row is the first view of an image, as `LatentStore.plain` gives it.
    """

    def __init__(self, tokenizer: Tokenizer, images: Images, plan: EncodingPlan, device: torch.device):
        self.tokenizer, self.images, self.plan, self.device = tokenizer, images, plan, device
        self.chosen = evenly_spaced(None, len(images), min(len(images), ROWS))

    def __len__(self) -> int:
        return len(self.chosen)

    def plain(self, indices: Tensor) -> CodeBatch:
        """Rows `indices` [B]."""
        rows = {name: tensor[indices] for name, tensor in self._tensors.items()}
        labels = rows.get("labels")
        code = Code(rows.get("z"), rows.get("ids"), rows.get("class_token"))
        return CodeBatch(code, rows.get("std"), None if labels is None else Condition(labels))

    @cached_property
    def _tensors(self) -> dict[str, Tensor]:
        encoder = Encoder(self.tokenizer, self.images, self.plan, self.device)
        crops = tuple(self.plan.latents.crops[:1])
        parts = []
        for rows in self.chosen.split(CHUNK):
            view = next(self.images.views(rows, crops))
            tensors = encoder.encode(rows, [view])
            parts.append({name: tensor if name == "labels" else tensor[:, 0] for name, tensor in tensors.items()})
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

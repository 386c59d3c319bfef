"""Images and codes of a pipeline: the mixin of one whose tokenizer makes each of the other."""

from typing import Any

import torch
from torch import Tensor

from pipeline.code import Code
from pipeline.nn.finite import check_finite
from pipeline.nn.memory_saving import DecodingSwitches


class ImageCodes(DecodingSwitches):
    """For a pipeline with a `tokenizer` and an `image_processor`."""

    def decode(self, code: Code) -> Tensor:
        """Images [B, 3, H, W], nominally in [-1, 1], float32; one at a time when slicing is enabled.

        Raises NotFinite where the decoder makes numbers that are not finite.
        """
        code = Code(z=None if code.z is None else code.z.to(self.tokenizer.dtype), ids=code.ids)
        rows = [code[i : i + 1] for i in range(len(code))] if self.use_slicing else [code]
        images = torch.cat([self.tokenizer.decode(row) for row in rows]).float()
        check_finite(images, "the decoded image")
        return images

    def _output(self, code: Code, output_type: str) -> Any:
        if output_type == "latent":
            return code.ids if code.z is None else code.z
        return self.image_processor.postprocess(self.decode(code), output_type)

"""Images and codes of a pipeline: the mixin of one whose tokenizer makes each of the other."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor

from pipeline.code import Code, Condition
from pipeline.components import conform
from pipeline.editing.edit import NewImages
from pipeline.editing.pictures import Picture, read_pictures
from pipeline.images.stored_pixels import as_picture, to_pixels
from pipeline.nn.finite import check_finite
from pipeline.nn.memory_saving import DecodingSwitches
from pipeline.ranges import ImageCount
from pipeline.samplers.arc import arc


class ImageCodes(DecodingSwitches):
    """For a pipeline with a `tokenizer` and an `image_processor`."""

    @torch.no_grad()
    def encode(self, images: Picture | Sequence[Picture], condition: Condition | None = None) -> Code:
        """The code of pictures at unit scale, without noise of a posterior; one at a time when slicing is enabled.

        `condition` has a row per picture, for a tokenizer that reads captions; others do without.

        PIL images and arrays of integers are resized and cropped as training images are; floats are arrays in [0, 1] or
        tensors [B, C, H, W] in [-1, 1] of the pipeline's size. Raises ValueError with one line for others.
        """
        pixels = read_pictures(images, self.tokenizer.image_shape, self.config.depth).images
        pixels = pixels.to(self._execution_device, self.tokenizer.dtype)
        parts = self._with_condition(pixels, condition)
        codes = [self.tokenizer.encode(*part) for part in parts]
        return Code.cat([Code(z=None if code.z is None else code.z.float(), ids=code.ids) for code in codes])

    @torch.no_grad()
    def decode(self, code: Code, condition: Condition | None = None) -> Tensor:
        """Images [B, C, H, W], nominally in [-1, 1], float32; one at a time when slicing is enabled.

        `condition` has a row per code, for a decoder that reads captions; others do without. Raises NotFinite where the
        decoder makes numbers that are not finite.
        """
        code = Code(z=None if code.z is None else code.z.to(self.tokenizer.dtype), ids=code.ids)
        code = code.to(self._execution_device)
        images = torch.cat([self.tokenizer.decode(*part) for part in self._with_condition(code, condition)]).float()
        check_finite(images, "the decoded image")
        return images

    def interpolate(
        self, first: Picture, last: Picture, steps: int = 8, output_type: str = "pil", **words: Any
    ) -> ImagePipelineOutput:
        """`steps` images on the way from one picture to another, the reconstructions of both among them.

        Their codes lie on the arc between those of the two, at equal angles. A tokenizer that reads captions is given
        one for all by `prompt`, or by `prompt_embeds` and what belongs to these. Raises ValueError with one line for
        more than two pictures, and for a tokenizer of ids, between which there is nothing.
        """
        if self.tokenizer.spec.vocab:
            raise ValueError("this tokenizer makes ids, and nothing lies between two ids; edit the images instead")
        pair = read_pictures([first, last], self.tokenizer.image_shape, self.config.depth).images
        if len(pair) != 2:
            raise ValueError(f"images lie between two pictures, and {len(pair)} are given; give one and another")
        steps = conform(steps, ImageCount, "steps")
        caption = self._features_of_all(words)
        way = Code(z=arc(*self.encode(pair, None if caption is None else caption[[0, 0]]).z, steps))
        return ImagePipelineOutput(
            self._output(way, output_type, condition=None if caption is None else caption[[0] * steps])
        )

    def _with_condition(self, batch: Any, condition: Condition | None) -> list[tuple[Any, Condition | None]]:
        """The batch and its condition, as the tokenizer reads them; row by row while slicing is enabled."""
        if condition is not None:
            condition = condition.to(self._execution_device).cast(self.tokenizer.dtype)
        rows = [slice(i, i + 1) for i in range(len(batch))] if self.use_slicing else [slice(None)]
        return [(batch[row], None if condition is None else condition[row]) for row in rows]

    def _output(
        self, code: Code, output_type: str, made: NewImages = NewImages(), condition: Condition | None = None
    ) -> Any:
        if output_type == "latent":
            return code.ids if code.z is None else code.z
        images = made.finish(self.decode(code, condition))
        if output_type == "pil":  # L, RGB or RGBA, and I;16 where the data has 16 bits
            return [as_picture(pixels) for pixels in to_pixels(images, self.config.depth)]
        return self.image_processor.postprocess(images, output_type)

"""Speed: how many images per second the tokenizer encodes and decodes on this machine."""

import torch

from pipeline.metrics.base import Measurements, Quantity, TokenizerInputs, TokenizerMetric
from pipeline.nn.devices import device_name
from pipeline.nn.throughput import images_per_second


class Speed(TokenizerMetric):
    """Images per second, in float32, of one batch that lies in memory."""

    quantities = (Quantity("speed_{}", "Speed, {}", "higher", "images that the tokenizer {}s per second", "images/s"),)
    order = 900
    group = "Speed"

    @torch.no_grad()
    def measure(self, inputs: TokenizerInputs) -> Measurements:
        tokenizer, device, batch = inputs.tokenizer, inputs.accelerator.device, inputs.read_images()
        pixels, condition = batch.images, batch.condition
        code, (_, height, width) = inputs.encode(pixels, condition), inputs.image_shape
        work = {
            "encode": lambda: tokenizer.encode(pixels, condition),
            "decode": lambda: tokenizer.decode(code, condition),
        }
        protocol = {
            "device": device_name(device),
            "images": f"{len(pixels)} of {height} x {width} pixels at once",
            "precision": "float32",
            "torch": torch.__version__,
            "times": "median of 5 after one to warm up, data in memory",
        }
        for name, task in work.items():
            yield self.quantities[0].measurement(images_per_second(task, len(pixels), device), protocol, name)

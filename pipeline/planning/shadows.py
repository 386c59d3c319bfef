"""Networks and draws without content, on which a training step is measured and nothing is computed."""

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pipeline.draws import Draws
from pipeline.frozen.base import STAND_IN_WIDTH
from pipeline.frozen.networks import FrozenNetworks
from pipeline.nn.convolution_stages import stem_and_stages
from pipeline.teachers.classifier import Classifier
from pipeline.teachers.convnext import ConvNext
from pipeline.teachers.lpips_vgg import LpipsVgg
from pipeline.teachers.vision_model import VisionModel
from pipeline.vision.architectures import architecture

META = torch.device("meta")
ENGINE = torch.autograd.Variable._execution_engine
FILLED = 0.01  # of parameters, where a step is computed after all
AModule = TypeVar("AModule", bound=nn.Module)


class NotMeasurable(ValueError):
    """Why a training step cannot be measured here, in a line."""


@dataclass(frozen=True)
class ShadowAccelerator:
    """What builders of losses ask of an accelerator."""

    device: torch.device = META
    is_main_process: bool = False


@dataclass(frozen=True)
class ShadowNetworks(FrozenNetworks):
    """The frozen networks of a recipe by their sizes alone; no file of weights is read, and none needs to be here.

    Losses and critics are built with it on the meta device.
    """

    def vision_model(self, teacher: str, place: str, **options: Any) -> VisionModel:
        return VisionModel.without_weights(self.config(teacher, place), **options)

    def depth(self, teacher: str, place: str) -> int | None:
        return self.config(teacher, place).get("num_hidden_layers")

    def config(self, teacher: str, place: str) -> Any:
        """The sizes of a vision model; NotMeasurable where they are not known."""
        if (config := architecture(teacher, self.recipe.weights.files)) is None:
            raise NotMeasurable(f"the sizes of {teacher}, at {place}, are not known on this machine")
        return config

    def lpips(self) -> LpipsVgg:
        return LpipsVgg().requires_grad_(False).eval()

    def convnext(self) -> ConvNext:
        sizes = {"depths": [3, 3, 27, 3], "hidden_sizes": [96, 192, 384, 768], "num_labels": 1000}
        return ConvNext(**sizes).requires_grad_(False).eval()

    def stand_in(self, name: str = "", dim: int = STAND_IN_WIDTH) -> Classifier:
        return Classifier(10, dim=dim, **stem_and_stages(self.recipe.data.size)).requires_grad_(False).eval()


def placed(module: AModule, device: torch.device) -> AModule:
    """The module with tensors of the same shapes on `device`, in place; what is shared stays so."""
    made: dict[int, Tensor] = {}  # by the tensor that it stands for

    def stand_for(tensor: Tensor) -> Tensor:
        if tensor.device == device:
            return tensor
        if id(tensor) not in made:
            fill = FILLED if tensor.is_floating_point() else 0
            filled = torch.full(tensor.shape, fill, dtype=tensor.dtype, device=device)
            made[id(tensor)] = (
                nn.Parameter(filled, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else filled
            )
        return made[id(tensor)]

    for part in list(module.modules()):
        for held in (part._parameters, part._buffers):
            held.update({name: stand_for(tensor) for name, tensor in held.items() if tensor is not None})
    return module


class ShadowDraws(Draws):
    """Draws of a training step on a device that may have no generator: all are the same number."""

    def __init__(self, images: int, step: int, device: torch.device):
        self.images, self.batch, self.step, self.device = images, images, step, device
        self.seed, self.places = 0, slice(0, images)

    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return torch.full((self.images, *shape), 0.5, device=self.device)

    def uniform(self, name: str, shape: tuple[int, ...] = ()) -> Tensor:
        return torch.full((self.images, *shape), 0.5, device=self.device)

    def uniform_of_all(self, name: str) -> Tensor:
        return torch.full((self.images,), 0.6)  # its numbers are read

    def keep_mask(self, name: str, shape: tuple[int, ...], rate: float) -> Tensor:
        return torch.ones(self.images, *shape, dtype=torch.bool, device=self.device)


class FusedAttention(torch.autograd.Function):
    """The shape of attention, and what the fused kernels of GPUs keep of it: no weights, a number for each query."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        output = torch.zeros(*q.shape[:-1], v.shape[-1], dtype=q.dtype, device=q.device)
        sums = torch.zeros(q.shape[:-1], dtype=torch.float32, device=q.device)
        ctx.save_for_backward(q, k, v, output, sums)
        return output

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.zeros_like(each) for each in ctx.saved_tensors[:3])


PRODUCTS = {F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d}
PRODUCTS |= {torch.matmul, torch.bmm, torch.mm, torch.addmm, torch.baddbmm, torch.einsum, torch.conv2d}
PRODUCTS |= {Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, Tensor.bmm, Tensor.mm}
IN_FLOAT32 = {F.layer_norm, F.group_norm, F.softmax, F.log_softmax, F.cosine_similarity, F.softplus, F.cross_entropy}
IN_FLOAT32 |= {torch.softmax, torch.log_softmax, torch.exp, torch.log, torch.cdist, torch.rsqrt, torch.sum, torch.prod}
IN_FLOAT32 |= {Tensor.softmax, Tensor.log_softmax, Tensor.exp, Tensor.log, Tensor.rsqrt, Tensor.sum, Tensor.norm}
IN_FLOAT32 |= {F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.nll_loss, Tensor.cumsum, torch.cumsum, Tensor.pow, torch.pow}


class AsOnGpus(TorchFunctionMode):
    """Attention by a fused kernel; where autocast is on, its rules for GPUs, which others of the CPU are in place of.

    Products read bf16, of parameters one copy a step; norms, softmax, sums and losses read float32.
    """

    def __init__(self, narrow: torch.dtype) -> None:
        super().__init__()
        self.narrow = narrow
        self.copies: dict[int, Tensor] = {}  # of parameters

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, on = kwargs or {}, torch.is_autocast_enabled("cpu")
        if func is torch.autograd.grad:  # which may compute again what was checkpointed, in this mode
            with self:
                return go_back(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            q, k, v = (self.narrowed(each) if on else each for each in args[:3])
            return FusedAttention.apply(q, k, v)
        if on and func in PRODUCTS:
            args, kwargs = self.each(args, self.narrowed), {n: self.each(v, self.narrowed) for n, v in kwargs.items()}
        elif on and func in IN_FLOAT32:
            args, kwargs = self.each(args, widened), {n: self.each(v, widened) for n, v in kwargs.items()}
        return func(*args, **kwargs)

    def each(self, value: Any, change: Any) -> Any:
        """Tensors changed, also those in a sequence."""
        if isinstance(value, (tuple, list)):
            return type(value)(self.each(one, change) for one in value)
        return change(value) if isinstance(value, Tensor) else value

    def narrowed(self, tensor: Tensor) -> Tensor:
        if tensor.dtype != torch.float32:
            return tensor
        if not isinstance(tensor, nn.Parameter):
            return tensor.to(self.narrow)
        key = id(tensor)
        if key not in self.copies:
            self.copies[key] = tensor.to(self.narrow)
        return self.copies[key]


def go_back(
    outputs: Any, inputs: Any = (), grad_outputs: Any = None, retain_graph: bool | None = False, **options: Any
) -> tuple[Tensor, ...]:
    """`torch.autograd.grad` of one output; without `inputs` its `backward`. It does not leave modes of functions."""
    (output,) = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
    inputs = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    (slope,) = grad_outputs if isinstance(grad_outputs, (tuple, list)) else (grad_outputs,)
    slope = torch.ones_like(output) if slope is None else slope
    kept = bool(retain_graph) or bool(options.get("create_graph"))
    create = bool(options.get("create_graph"))
    return ENGINE.run_backward(
        (output,), (slope,), kept, create, inputs, allow_unreachable=True, accumulate_grad=not inputs
    )


def widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor

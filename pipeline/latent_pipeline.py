"""LatentPipeline: the diffusers object that a user loads, calls and saves."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Generator, Tensor

from pipeline.call_arguments import (
    ClassLabels,
    Defaults,
    count_images,
    find_labels,
    resolve_guidance,
    starting_noise,
)
from pipeline.code import Code, Condition
from pipeline.components import conform, structure
from pipeline.draws import Draws, GivenDraws, ImageDraws
from pipeline.samplers.guidance import Guidance, check_pair
from pipeline.samplers.request import OnStep, SamplingRequest
from pipeline.saved_folders import (
    fetch,
    import_components,
    keep_code,
    refuse_empty,
    refuse_missing_keys,
)
from pipeline.validation import SettingError, suggestion
from pipeline.whole_files import ordinary_modes

OUTPUTS = ("pil", "np", "pt", "latent")
OnStepEnd = Callable[[DiffusionPipeline, int, float, dict[str, Tensor]], dict[str, Tensor] | None]


class LatentPipeline(DiffusionPipeline):
    """A tokenizer, a network and the objective that samples the network: from labels and generators to images.

    `tokenizer` is a component of `pipeline.tokenizers`, `network` of `pipeline.networks`, `objective` of
    `pipeline.objectives`. `weak` is a network that guidance leads away from in place of the null label (AutoGuidance);
    with `pipe.weak = None` it is classifier-free again. A diffusers `scheduler` may take the place of the objective's
    own sampler; one that does not fit is refused with ValueError. `id2label` names the classes; `sampling` is a record
    of `Defaults`.
    """

    model_cpu_offload_seq = "network->tokenizer"
    _optional_components = ["scheduler", "weak"]
    _callback_tensor_inputs = ["latents"]

    def __init__(
        self,
        tokenizer: ModelMixin,
        network: ModelMixin,
        objective: SchedulerMixin,
        scheduler: SchedulerMixin | None = None,
        id2label: dict | None = None,
        sampling: dict | None = None,
        weak: ModelMixin | None = None,
    ):
        super().__init__()
        self.register_modules(tokenizer=tokenizer, network=network, objective=objective, scheduler=None, weak=None)
        names = {int(label): str(name) for label, name in (id2label or {}).items()}
        self.register_to_config(id2label=names, sampling=dict(sampling or {}))
        self.defaults = structure(Defaults, self.config.sampling, "sampling")
        self.image_processor = VaeImageProcessor(vae_scale_factor=1)
        self._slicing = False
        for part in (tokenizer, network, weak):
            if part is not None:
                refuse_empty(part)
        if scheduler is not None:
            self.scheduler = scheduler
        if weak is not None:
            self.weak = weak

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> "LatentPipeline":
        """The pipeline of a folder or hub id; keyword arguments as diffusers' (torch_dtype, variant, revision, ...).

        Imports what model_index.json names below `pipeline.` and nothing else. Raises ValueError with one line when
        the folder is no pipeline, or when weights are missing from it.
        """
        folder = fetch(pretrained_model_name_or_path, kwargs)
        import_components(folder)
        pipe = super().from_pretrained(folder, **{"use_safetensors": True, **kwargs})
        for part in {"tokenizer", "network", *(["weak"] if pipe.weak is not None else [])} - set(kwargs):
            refuse_missing_keys(getattr(pipe, part), folder / part, kwargs.get("variant"))
        return pipe

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Write the pipeline's folder, as diffusers does, with ordinary file modes; code that came with it stays."""
        super().save_pretrained(str(save_directory), *args, **kwargs)
        keep_code(self, Path(save_directory))
        ordinary_modes(Path(save_directory))

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self._optional_components or value is None:
            return super().__setattr__(name, value)
        (self._check_scheduler if name == "scheduler" else self._check_weak)(value)
        super().__setattr__(name, value)
        module = type(value).__module__  # diffusers records nothing when a component takes the place of None
        known = "diffusers" if module.startswith("diffusers.") else module
        self.register_to_config(**{name: (known, type(value).__name__)})

    def _check_scheduler(self, scheduler: SchedulerMixin) -> None:
        self.objective.check_scheduler(scheduler)

    def _check_weak(self, weak: ModelMixin) -> None:
        if not self.objective.autoguided:
            raise ValueError(f"{type(self.objective).__name__} models ids, which no weak network guides; leave it out")
        check_pair(self.network, weak)

    @property
    def id2label(self) -> dict[int, str]:
        """Class names by label; empty when the classes have none."""
        return self.config.id2label

    @property
    def steps(self) -> int:
        """Network evaluations of a call that states no number."""
        return self.objective.steps_for(self.tokenizer.spec, self.defaults.steps)

    @property
    def num_classes(self) -> int:
        """How many classes the network knows; 0 when it is unconditional."""
        return self.network.config.get("num_classes", 0)

    def request(
        self,
        condition: Condition | None,
        draws: Draws,
        steps: int | None = None,
        guidance: Guidance | None = None,
        on_step: OnStep | None = None,
    ) -> SamplingRequest:
        """What the objective samples by: this pipeline's network, and its defaults where a value is None."""
        return SamplingRequest(
            self.network,
            condition,
            self.tokenizer.spec,
            draws,
            self.steps if steps is None else steps,
            self.defaults.guidance if guidance is None else guidance,
            on_step,
            self.weak,
            self.scheduler,
        )

    @torch.no_grad()
    def __call__(
        self,
        class_labels: ClassLabels = None,
        num_images: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        generator: Generator | list[Generator] | None = None,
        latents: Tensor | None = None,
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        return_dict: bool = True,
        callback_on_step_end: OnStepEnd | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
        **settings: Any,
    ) -> ImagePipelineOutput | tuple:
        """Images of the classes asked for; each depends on its own label and generator alone, not on the batch.

        `class_labels`: a label or class name, or one an image; None for an unconditional network. `num_images` repeats
        a single label. `num_inference_steps` counts network evaluations. `guidance_interval`: noise levels at which
        guidance acts. `generator`: one an image, or one for all, drawn from image by image. `latents`: the noise to
        start from, [B, N, C] or [B, C, H, W]. `output_type`: `pil`, `np` [B, H, W, 3] or `pt` [B, 3, H, W] in [0, 1],
        or `latent` (codes at unit scale, [B, N, C], or ids). The callback is called as callback(pipe, step, noise
        level, {"latents": [B, N, C] or ids}) and may return {"latents": ...} to go on from. `settings`:
        guidance_channels, guidance_schedule, guidance_power, guidance_rescale, and what else the objective's `sample`
        takes. What is not stated is as `defaults` says. Raises ValueError with one line for labels, counts and settings
        that do not fit.
        """
        if output_type not in OUTPUTS:
            raise ValueError(f"output_type {output_type!r} is not one of {', '.join(OUTPUTS)}")
        labels, condition = find_labels(class_labels, num_images, self.id2label, self.num_classes), None
        if labels is not None:
            condition = Condition(labels=torch.tensor(labels, device=self._execution_device))
        steps = self.steps if num_inference_steps is None else conform(num_inference_steps, int, "num_inference_steps")
        guidance = self._guidance(guidance_scale, guidance_interval, settings)
        sampler = self._sampler(steps, settings)
        draws = self._draws(count_images(labels, num_images, generator, latents), generator, latents)
        with self._watched(steps, callback_on_step_end, callback_on_step_end_tensor_inputs) as on_step:
            code = self.objective.sample(self.request(condition, draws, steps, guidance, on_step), sampler)
        images = self._output(code, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def decode(self, code: Code) -> Tensor:
        """Images [B, 3, H, W], nominally in [-1, 1], float32; one at a time when slicing is enabled."""
        code = Code(z=None if code.z is None else code.z.to(self.tokenizer.dtype), ids=code.ids)
        rows = [code[i : i + 1] for i in range(len(code))] if self._slicing else [code]
        decode = apply_forward_hook(type(self.tokenizer).decode)  # brings an offloaded tokenizer to its device
        return torch.cat([decode(self.tokenizer, row) for row in rows]).float()

    def enable_slicing(self) -> None:
        """Decode images one by one, in less memory."""
        self._slicing = True

    def disable_slicing(self) -> None:
        """Decode all images of a call at once."""
        self._slicing = False

    def set_attention_backend(self, backend: str) -> None:
        """The attention kernel of the network, by diffusers' names (native, flash, xformers, ...)."""
        self.network.set_attention_backend(backend)

    def _guidance(self, scale: float | None, interval: tuple | None, settings: dict[str, Any]) -> Guidance:
        """The guidance asked for; takes its entries out of `settings`."""
        rest = {field.name: settings.pop(f"guidance_{field.name}", None) for field in fields(Guidance)}
        try:
            return resolve_guidance(self.defaults.guidance, rest | {"scale": scale, "interval": interval})
        except SettingError as error:  # a call's names are diffusers' own
            raise SettingError(error.place.replace(".", "_"), error.message) from None

    def _sampler(self, steps: int, stated: dict[str, Any]) -> Any:
        """The objective's own settings, those stated over the defaults; a swapped-in scheduler leaves no defaults."""
        known = self.objective.setting_names()
        others = [name for name in inspect.signature(self.__call__).parameters if name != "settings"]
        for name in stated:
            if name not in known:
                raise ValueError(f"{name}: there is no such setting{suggestion(name, [*known, *others])}")
        if self.scheduler is not None:
            return self.objective.read_settings(stated)
        settings = self.objective.read_settings(self.defaults.sampler | stated)
        self.objective.check_sampler(steps, self.tokenizer.spec, settings)
        return settings

    def _draws(self, count: int, generator: Generator | list[Generator] | None, latents: Tensor | None) -> Draws:
        if generator is None:
            generator = [Generator().manual_seed(seed) for seed in torch.randint(2**62, (count,)).tolist()]
        generators = [generator] * count if isinstance(generator, Generator) else list(generator)
        if len(generators) != count:
            raise ValueError(f"there are {len(generators)} generators for {count} images; give one an image, or one")
        draws = ImageDraws(generators, self._execution_device)
        if latents is None:
            return draws
        if self.objective.discrete:
            raise ValueError("latents are the noise that continuous codes start from; this generator makes ids")
        start = starting_noise(latents, count, self.tokenizer.spec)
        return GivenDraws({"start": start.to(self._execution_device)}, draws)

    @contextmanager
    def _watched(
        self, steps: int, callback: OnStepEnd | PipelineCallback | None, names: list[str] | None
    ) -> Iterator[OnStep]:
        """A progress bar, and a function for the objective to call after every step that calls the user's."""
        if isinstance(callback, (PipelineCallback, MultiPipelineCallbacks)):
            names = callback.tensor_inputs
        names = self._callback_tensor_inputs if names is None else names
        for name in names:
            if name not in self._callback_tensor_inputs:
                raise ValueError(f"a callback cannot have {name!r}{suggestion(name, self._callback_tensor_inputs)}")
        with self.progress_bar(total=steps) as bar:

            def on_step(step: int, time: float, state: Tensor) -> Tensor | None:
                bar.update(step + 1 - bar.n)
                if callback is None:
                    return None
                given = {}
                for name in names:
                    given[name] = state
                return (callback(self, step, time, given) or {}).get("latents")

            yield on_step
            bar.update(steps - bar.n)

    def _output(self, code: Code, output_type: str) -> Any:
        if output_type == "latent":
            return code.ids if code.z is None else code.z
        return self.image_processor.postprocess(self.decode(code), output_type)

"""LatentPipeline: the diffusers object that a user loads, calls and saves."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Generator, Tensor

from pipeline.adapters import AdapterLoading
from pipeline.call_arguments import (
    ClassLabels,
    Defaults,
    check_count,
    count_images,
    draws_of_call,
    find_labels,
    read_latents,
    repeat_labels,
    resolve_guidance,
    shared_arguments,
)
from pipeline.code import Code, Condition
from pipeline.components import conform, structure
from pipeline.draws import Draws
from pipeline.editing.codes import ImageCodes
from pipeline.editing.edit import NewImages, read_edit
from pipeline.editing.pictures import Picture
from pipeline.images.stored_pixels import Depth
from pipeline.nn.finite import check_finite, naming_images
from pipeline.prompts import CallWords, Features, PromptReading, Prompts, shared_spec
from pipeline.samplers.callbacks import (
    Interrupted,
    LiveGuidance,
    OnStepEnd,
    StepCallback,
    callback_tensors,
    unfinished_code,
)
from pipeline.samplers.guidance import Guidance, check_pair, check_same_codes
from pipeline.samplers.request import OnStep, SamplingRequest
from pipeline.saved_folders import refuse_empty
from pipeline.saved_pipeline import SavedPipeline
from pipeline.validation import SettingError, suggestion

OUTPUTS = ("pil", "np", "pt", "latent")


@dataclass(frozen=True)
class How:
    """How a call samples."""

    steps: int  # network evaluations
    guidance: Guidance
    sampler: Any  # the objective's own settings
    callback: OnStepEnd | None
    names: list[str]  # of the tensors that the callback asks for


class LatentPipeline(SavedPipeline, AdapterLoading, ImageCodes, PromptReading, DiffusionPipeline):
    """A tokenizer, a network and the objective that samples it: from labels or prompts, and generators, to images.

    `tokenizer` is a component of `pipeline.tokenizers`, `network` of `pipeline.networks`, `objective` of
    `pipeline.objectives`. `weak` is a network that guidance leads away from in place of the null label (AutoGuidance);
    with `pipe.weak = None` it is classifier-free again. `text_encoder`, of `pipeline.text_encoders`, makes features of
    prompts where network or tokenizer read them; without it a call takes `prompt_embeds`, and `text`
    may name the encoder by its kind and arguments. A diffusers `scheduler` may
    take the place of the objective's own sampler; one that does not fit is refused with ValueError. `id2label` names
    the classes; without it they are named as in the last pipeline that the network was a part of. `sampling` is a
    record of `Defaults`. `depth` is that of the pictures that `output_type="pil"` gives: 16 bits make greys I;16.

    A call takes what it is not given from `defaults`. Its `callback_on_step_end` is called as
    callback(pipe, step, noise level, {"latents": ...}) and may return {"latents": ...} to continue from. NotFinite, a
    FloatingPointError, names the images and their seeds where a code or an image is not finite.
    """

    model_cpu_offload_seq = "text_encoder->network->tokenizer"
    _optional_components = ["scheduler", "weak", "text_encoder"]
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
        depth: int = 8,
        text_encoder: ModelMixin | None = None,
        text: dict | None = None,
    ):
        super().__init__()
        for part in (tokenizer, network, objective, *(one for one in (weak, text_encoder) if one is not None)):
            refuse_empty(part)
        self.register_modules(tokenizer=tokenizer, network=network, objective=objective)
        self.register_modules(**dict.fromkeys(self._optional_components))
        id2label = network.class_names if id2label is None else id2label
        names = network.class_names = {int(label): str(name) for label, name in (id2label or {}).items()}
        self.register_to_config(id2label=names, sampling=dict(sampling or {}), depth=conform(depth, Depth, "depth"))
        self.register_to_config(text=text)
        self.defaults = structure(Defaults, self.config.sampling, "sampling")
        self.image_processor = VaeImageProcessor(vae_scale_factor=1)
        self._interrupt = False
        self._guidance_scale, self._num_timesteps = self.defaults.guidance.scale, self.steps
        check_same_codes(tokenizer, network)
        shared_spec([network, tokenizer])
        for name, part in (("scheduler", scheduler), ("weak", weak), ("text_encoder", text_encoder)):
            if part is not None:
                setattr(self, name, part)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> "LatentPipeline":
        """A pipeline that shares the components of another, keeps its classes and its defaults of sampling.

        Keyword arguments take the place of some of them; with `dtype` (or `torch_dtype`) the shared models are
        cast, otherwise they stay as they are. Raises ValueError when a component is missing.
        """
        dtype = kwargs.pop("dtype", kwargs.pop("torch_dtype", None))
        names = [name for name in inspect.signature(cls.__init__).parameters if name != "self"]
        arguments = shared_arguments(pipeline, kwargs, names)
        new = cls(**arguments)
        return new if dtype is None else new.to(dtype)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self._optional_components or value is None:
            return super().__setattr__(name, value)
        getattr(self, f"_check_{name}")(value)
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

    @property
    def guidance_scale(self) -> float:
        """Of the call at hand, or of the last one. A callback may set `_guidance_scale` for the steps to come."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the network is also asked without its condition."""
        return self.guidance_scale != 1 and self.weak is None and bool(self.network.reads)

    @property
    def num_timesteps(self) -> int:
        """Network evaluations of the call at hand, or of the last one."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether the call at hand ends after its current step; a callback sets `_interrupt`."""
        return self._interrupt

    def request(
        self,
        condition: Condition | None,
        draws: Draws,
        steps: int | None = None,
        guidance: Guidance | None = None,
        on_step: OnStep | None = None,
        negative: Condition | None = None,
    ) -> SamplingRequest:
        """What the objective samples by: this pipeline's network, and its defaults where a value is None.

        Of a condition, and of the negative one, the network gets what it reads.
        """
        return SamplingRequest(
            self.network,
            self.network.select(condition),
            self.tokenizer.spec,
            draws,
            self.steps if steps is None else steps,
            self.defaults.guidance if guidance is None else guidance,
            on_step,
            self.weak,
            self.scheduler,
            self.network.select(negative),
        )

    @torch.no_grad()
    def __call__(
        self,
        class_labels: ClassLabels = None,
        num_images: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        num_images_per_label: int = 1,
        prompt: Prompts = None,
        negative_prompt: Prompts = None,
        num_images_per_prompt: int = 1,
        prompt_embeds: Features = None,
        generator: Generator | list[Generator] | None = None,
        latents: Tensor | None = None,
        image: Picture | Sequence[Picture] | None = None,
        mask: Picture | Sequence[Picture] | None = None,
        strength: float | None = None,
        mask_blur: int = 0,
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        return_dict: bool = True,
        callback_on_step_end: OnStepEnd | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
        **settings: Any,
    ) -> ImagePipelineOutput | tuple:
        """Images of classes or of prompts, new or of a picture; each depends on its own inputs alone, not on the batch.

        `class_labels`: a label or class name, or one per image; without classes None, or the prompt. `prompt`: a text,
        or one per image. `prompt_embeds`: features in its place, as of `encode_prompt`. `num_images` repeats a single
        label or prompt, `num_images_per_label` or `_per_prompt` every one. `num_inference_steps` counts network
        evaluations. `guidance_interval`: noise levels at which guidance acts. `generator`: one per image, or one for
        all, drawn from image by image. `latents`: the noise to start from, [B, N, C] or [B, C, H, W]. `image`: one, or
        one per image, made anew: wholly at `strength` 1, hardly near 0 (by default 0.8, and 1 with a mask), and where
        `mask` is white alone, fading over `mask_blur` pixels. `output_type`: `pil`, `np` [B, H, W, C] or `pt` [B, C, H,
        W] in [0, 1], or `latent` (codes, [B, N, C], or ids). `settings`: guidance_channels, -_schedule, -_power,
        -_rescale, those of prompts (`pipeline.prompts.BESIDE`), and the objective's. ValueError for misfits.
        """
        class_labels, words = self._words(class_labels, prompt, negative_prompt, prompt_embeds, settings)
        made = read_edit(image, mask, strength, mask_blur, self.tokenizer.image_shape, self.config.depth)
        number, each = words.count(made.count(num_images)), words.each(num_images_per_label, num_images_per_prompt)
        labels = self.check_inputs(class_labels, number, each, output_type)
        callback = callback_on_step_end, callback_on_step_end_tensor_inputs
        how = self._how(num_inference_steps, (guidance_scale, guidance_interval), callback, settings)
        count = count_images(labels, words.images(number, each), generator, latents := read_latents(latents))
        draws = draws_of_call(count, generator, latents, self.tokenizer.spec, self._execution_device)
        images = self._make(made, labels, words.repeated(count, each), draws, how, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _make(
        self, made: NewImages, labels: list[int] | None, words: CallWords, draws: Draws, how: How, output_type: str
    ) -> Any:
        """The images of a call whose arguments are checked, a label, a row of words and a seed each."""
        self._guidance_scale, self._num_timesteps, self._interrupt = how.guidance.scale, how.steps, False
        self._check_words(words, how.guidance)
        condition = self._condition(labels, words)
        negative = None if words.negative_prompt is None else self._features(words.negative_prompt)
        request = self.request(condition, draws, how.steps, how.guidance, negative=negative)
        made = made.encoded(self, len(draws.seeds), condition)
        with naming_images(seeds=draws.seeds):
            code = self._sample(request, made, how)
            images = self._output(code, output_type, made, condition)
        self.maybe_free_model_hooks()
        return images

    def check_inputs(
        self,
        class_labels: ClassLabels = None,
        num_images: int | None = None,
        num_images_per_label: int = 1,
        output_type: str = "pil",
    ) -> list[int] | None:
        """The label of every image of such a call, None without classes; ValueError with one line if it is refused."""
        if output_type not in OUTPUTS:
            raise ValueError(f"output_type {output_type!r} is not one of {', '.join(OUTPUTS)}")
        labels = find_labels(class_labels, num_images, self.id2label, self.num_classes)
        return None if labels is None and self.text_spec else repeat_labels(labels, num_images_per_label)

    def prepare_latents(
        self, count: int, generator: Generator | list[Generator] | None = None, latents: Tensor | None = None
    ) -> Tensor:
        """The noise [count, N, C] that a call with these arguments starts from; ValueError for a generator of ids."""
        if self.objective.discrete:
            raise ValueError("this generator makes ids, which do not start from noise")
        spec, latents, count = self.tokenizer.spec, read_latents(latents), check_count("count", count)
        return draws_of_call(count, generator, latents, spec, self._execution_device).normal("start", spec.shape)

    def set_attention_backend(self, backend: str) -> None:
        """The attention kernel of the network, by diffusers' names (native, flash, xformers, ...)."""
        self.network.set_attention_backend(backend)

    def _how(self, steps: int | None, guided: tuple, callback: tuple, settings: dict[str, Any]) -> How:
        """How a call samples; `guided` are the scale and interval of its guidance, `callback` one and its names."""
        steps = self.steps if steps is None else conform(steps, int, "num_inference_steps")
        guidance = self._guidance(*guided, settings)
        names = callback_tensors(*callback, self._callback_tensor_inputs)
        return How(steps, guidance, self._sampler(steps, settings), callback[0], names)

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
        if self.scheduler is not None and stated:
            first = next(iter(stated))
            raise ValueError(f"{first} has no effect beside pipe.scheduler; leave it out, or set pipe.scheduler = None")
        if self.scheduler is not None:
            return self.objective.read_settings({})
        settings = self.objective.read_settings(self.defaults.sampler | stated)
        self.objective.check_sampler(steps, self.tokenizer.spec, settings)
        return settings

    def _sample(self, request: SamplingRequest, made: NewImages, how: How) -> Code:
        """The code, with a progress bar and the user's callback after every step; the state so far if interrupted."""
        with self.progress_bar(total=request.steps) as bar:
            on_step = StepCallback(self, request, how.callback, how.names, bar)
            guidance = LiveGuidance(**vars(request.guidance), current=lambda: self._guidance_scale)
            try:
                code = made.sample(self.objective, replace(request, on_step=on_step, guidance=guidance), how.sampler)
            except Interrupted as interruption:
                return made.restore(unfinished_code(interruption.state, request.spec))
            bar.update(request.steps - bar.n)
        if code.z is not None:
            check_finite(code.z, "the sampled code")
        return code

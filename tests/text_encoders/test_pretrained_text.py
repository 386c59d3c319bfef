"""Any published text model gives the states that transformers gives, whatever its family, and the same when saved."""

import json

import pytest
import torch
from contracts import PROMPTS, check_text_encoder
from support.fresh_process import answers_of_saved
from support.tiny_text_models import CONFIGS, save_model

from pipeline.checks.weights import all_missing
from pipeline.components import build, check
from pipeline.recipes.schema import load
from pipeline.saved_folders import load_component

KINDS = ["clip", *CONFIGS]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of every kind, with its model."""
    root = tmp_path_factory.mktemp("models")
    sides = {"llama": "left", "gpt2": "left"}
    return {
        kind: (root / kind, save_model(root / kind, kind, sides.get(kind, "right"), kind != "gpt2")) for kind in KINDS
    }


def node(folder, **more):
    return {"kind": "pretrained_text", "path": str(folder), "tokens": 10} | more


@pytest.mark.parametrize("kind", KINDS)
def test_it_keeps_the_contract(folders, kind):
    pooling = {"bert": "first", "llama": "last", "gpt2": "last", "clip": "none"}.get(kind, "mean")
    check_text_encoder(node(folders[kind][0], pooling=pooling, layers=[0, 2, -1]))


@pytest.mark.parametrize("kind", KINDS)
def test_states_are_those_of_transformers(folders, kind):
    folder, model = folders[kind]
    encoder = build("text_encoders", node(folder, layers=[1, -1, -2])).eval()
    prompt = ["red heart of the house"]
    ids = encoder.words(prompt, return_tensors="pt")["input_ids"]
    model = {"clip": lambda: model.text_model, "t5": lambda: model}.get(kind, lambda: model)()
    with torch.no_grad():
        expected = model(input_ids=ids, output_hidden_states=True)
    made = encoder.encode(prompt)
    text = made.text[made.text_mask]
    assert len(text) == ids.shape[1]
    whole = [expected.hidden_states[1], expected.last_hidden_state, expected.hidden_states[2]]
    torch.testing.assert_close(text, torch.cat(whole, dim=-1)[0], atol=1e-5, rtol=1e-4)


def test_clips_own_vector_is_projected(folders):
    prompts = ["red heart", "blue circle of a house"]
    for kind in ("clip", "clip_text_model"):
        folder, model = folders[kind]
        encoder = build("text_encoders", node(folder, pooling="model")).eval()
        assert encoder.spec.pooled == 12
        for row, prompt in enumerate(prompts):
            ids = encoder.words([prompt], return_tensors="pt")["input_ids"]
            with torch.no_grad():
                expected = (
                    model.get_text_features(input_ids=ids) if kind == "clip" else model(input_ids=ids).text_embeds
                )
            expected = getattr(expected, "pooler_output", expected)
            torch.testing.assert_close(encoder.encode(prompts).pooled[row : row + 1], expected, atol=1e-5, rtol=1e-4)
        unit = build("text_encoders", node(folder, pooling="model", unit_norm=True)).eval().encode(prompts).pooled
        torch.testing.assert_close(unit.norm(dim=1), torch.ones(2))


def test_berts_own_vector_and_one_of_a_model_without(folders):
    folder, model = folders["bert"]
    encoder = build("text_encoders", node(folder, pooling="model")).eval()
    ids = encoder.words(["red heart"], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(encoder.encode(["red heart"]).pooled, model(input_ids=ids).pooler_output)
    llama = build("text_encoders", node(folders["llama"][0], pooling="model"))
    with pytest.raises(ValueError, match="no vector of a text; set text.encoder.pooling=mean"):
        llama.encode(["red"])


def test_paddings_may_be_read_as_tokens(folders):
    folder, model = folders["clip_text_model"]
    kept = build("text_encoders", node(folder, padding="kept", pad=3)).eval()
    ids = torch.tensor([[1, 4, 7, 2, *[3] * 6]])
    made = kept.encode(["red heart"])
    with torch.no_grad():
        expected = model(input_ids=ids).last_hidden_state
    torch.testing.assert_close(made.text, expected, atol=1e-5, rtol=1e-4)
    assert made.text_mask.all()


def test_the_side_of_paddings_is_the_tokenizers_or_stated(folders):
    folder = folders["llama"][0]
    left, right = (
        build("text_encoders", node(folder, side=side)).eval().encode(["red heart"]) for side in (None, "right")
    )
    assert (
        left.text_mask[0].tolist() == [False] * 6 + [True] * 4
        and right.text_mask[0].tolist() == [True] * 4 + [False] * 6
    )
    torch.testing.assert_close(left.text[left.text_mask], right.text[right.text_mask], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_same_saved_without_its_origin(folders, kind, tmp_path):
    encoder = build("text_encoders", node(folders[kind][0], layers=[-2], pooling="mean")).eval()
    before = encoder.encode(PROMPTS)
    encoder.register_to_config(path="gone")
    encoder.save_pretrained(tmp_path / "encoder")
    after = load_component(type(encoder), tmp_path / "encoder").eval()
    for name in ("text", "text_mask", "pooled"):
        assert torch.equal(getattr(before, name), getattr(after.encode(PROMPTS), name)), name
    assert after.spec == encoder.spec


def test_it_is_the_same_in_a_fresh_process(folders, tmp_path):
    encoder = build("text_encoders", node(folders["t5"][0])).eval()
    after = answers_of_saved(tmp_path, {"encoder": (encoder.encode, PROMPTS)})["encoder"]
    assert torch.equal(encoder.encode(PROMPTS).text, after.text)


def test_sizes_of_a_model_that_is_not_here_are_stated():
    away = {"kind": "pretrained_text", "path": "nobody/a_model_that_is_not_here", "tokens": 7, "layers": [-2, -1]}
    cls, arguments = check("text_encoders", away)
    with pytest.raises(ValueError, match="dim is not known, since nobody/.* state dim and depth beside it"):
        cls.geometry(arguments)
    spec = cls.geometry(check("text_encoders", away | {"dim": 8, "depth": 4, "pooling": "mean"})[1])
    assert (spec.tokens, spec.dim, spec.layers, spec.pooled) == (7, 8, 2, 8)
    with pytest.raises(ValueError, match="state dim and depth and pooled"):
        cls.geometry(check("text_encoders", away | {"dim": 8, "depth": 4, "pooling": "model"})[1])


@pytest.mark.parametrize(
    "more, message",
    [
        ({"layers": [4]}, "no layer 4 of 3"),
        ({"dim": 17}, "dim is 17, but that of .* is 16; correct it"),
        ({"tokens": 21}, "tokens is 21, and the model has 20 positions"),
    ],
)
def test_what_does_not_fit_is_refused_without_building(folders, more, message):
    cls, arguments = check("text_encoders", node(folders["clip_text_model"][0], **more))
    with pytest.raises(ValueError, match=message):
        cls.geometry(arguments)


def test_folders_that_lack_something_are_named(folders, tmp_path):
    import shutil

    with pytest.raises(ValueError, match="there is no folder .*, and it is no id of the hub"):
        build("text_encoders", node(tmp_path / "nowhere"))
    for name, message in [
        ("config.json", "no config.json"),
        ("model.safetensors", "no weights as safetensors, and pickles are not read"),
        ("tokenizer.json", "no tokenizer that can be read"),
    ]:
        copy = tmp_path / name.replace(".", "_")
        shutil.copytree(folders["bert"][0], copy)
        (copy / name).unlink()
        with pytest.raises(ValueError, match=message) as error:
            build("text_encoders", node(copy))
        assert "\n" not in str(error.value)
    copy = tmp_path / "deeper"
    shutil.copytree(folders["bert"][0], copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    with pytest.raises(ValueError, match="lacks .*encoder.layer.3"):
        build("text_encoders", node(copy))


def test_a_model_that_is_missing_is_told_by_the_check(tmp_path):
    recipe = load(
        "digits", [f"text={{encoder: {{kind: pretrained_text, path: {tmp_path}/gone, tokens: 8, dim: 4, depth: 2}}}}"]
    )
    assert any(line.startswith("text.encoder.path: ") and "gone" in line for line in all_missing(recipe))

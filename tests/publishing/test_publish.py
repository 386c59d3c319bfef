"""A published folder: the card's words are true, its snippets run, and others can load it without this package."""

import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import AutoencoderKL, DiTTransformer2DModel
from huggingface_hub import ModelCard
from PIL import Image
from support.fresh_process import run_fresh
from support.tiny_pipeline import (
    NAMES,
    generators,
    make_network,
    make_pipeline,
    make_recipe,
    make_run,
    make_tokenizer,
    randomised,
)

import pipeline
from pipeline import LatentPipeline
from pipeline.code import Code, Condition
from pipeline.components import find, kinds
from pipeline.objectives.flow_matching import FlowRandomness
from pipeline.publishing.self_contained import pack
from stages import publish as stage

ROOT = Path(__file__).parents[2]
ALONE = """
import sys, torch
torch.set_num_threads(1)
class Hidden:
    # our package is not installed, as far as this process can tell
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("pipeline", "stages", "run"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden())
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
pipe.set_progress_bar_config(disable=True)
draw = lambda: [torch.Generator().manual_seed(seed) for seed in (5, 6)]
torch.save(pipe(["zero", 3], generator=draw(), output_type="pt").images, "images.pt")
pipe.save_pretrained("again")
again = DiffusionPipeline.from_pretrained("again", trust_remote_code=True)
torch.save(again(["zero", 3], generator=draw(), output_type="pt").images, "again.pt")
torch.save(pipe(["zero", 3], generator=draw(), output_type="pt").images, "after.pt")
halves = {"image": torch.zeros(2, 3, 16, 16), "mask": torch.eye(16)}
torch.save(again(["zero", 3], generator=draw(), output_type="pt", **halves).images, "edited.pt")
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A run published with everything."""
    root = tmp_path_factory.mktemp("runs") / "tiny"
    recipe = make_recipe(publish={"self_contained": True, "stock": True, "license": "mit"})
    work = make_run(root)
    with work.publish("pipeline", "1") as out:
        stage.run(recipe, work, out)
    return root / "pipeline"


def blocks(folder):
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)


def test_the_folder_is_a_pipeline_that_makes_the_same_images(published):
    loaded = LatentPipeline.from_pretrained(published)
    loaded.set_progress_bar_config(disable=True)
    made = loaded([0, 3], generator=generators(5, 6), output_type="pt").images
    assert torch.equal(made, make_pipeline()([0, 3], generator=generators(5, 6), output_type="pt").images)
    assert loaded.id2label == NAMES and loaded.defaults.steps == 3 and loaded.defaults.guidance.scale == 2
    assert not list(published.rglob("*.bin")) and not list(published.rglob("*.pkl"))


def test_the_card_is_valid_and_holds_the_numbers(published):
    text = (published / "README.md").read_text()
    card = ModelCard(text)
    assert card.data.license == "mit" and card.data.library_name == "diffusers" and card.data.model_name == "tiny"
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results == {"fd_pixels": 1.25, "psnr": 33.5}
    assert yaml.safe_load(text.split("---")[1])["model-index"][0]["name"] == "tiny"
    assert "| Fréchet distance, pixels | 1.250 | 1.000 | 7 samples; features: pixels |" in text
    assert "| PSNR | 33.5\N{NO-BREAK SPACE}dB |" in text and "1 great white shark" in text
    assert json.loads((published / "eval" / "metrics.json").read_text())["psnr"]["value"] == 33.5
    assert json.loads((published / "provenance.json").read_text())["generator"]["seconds"] == 1.5
    assert "name: tiny" in (published / "recipe.yaml").read_text()
    assert "{" not in re.sub(r"```.*?```", "", text, flags=re.DOTALL), "a placeholder was left"


def test_the_pictures_of_the_card_are_there(published):
    for name in re.findall(r"!\[.*?\]\((.*?)\)", (published / "README.md").read_text()):
        Image.open(published / name).verify()
    shown = json.loads((published / "samples" / "seeds.json").read_text())
    assert shown["labels"] == [0, 1, 2, 3] * 2 and shown["seeds"] == list(range(8))


def test_the_cards_snippets_run_as_they_stand(published, tmp_path):
    code = "\n".join(blocks(published))
    assert len(blocks(published)) == 2 and "trust_remote_code" in code
    here = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "1"}
    run_fresh(code, cwd=tmp_path, env=here)
    made = np.asarray(Image.open(tmp_path / "sample.png")).astype(int)
    expected = make_pipeline()(0, generator=generators(0)).images[0]
    assert abs(made - np.asarray(expected).astype(int)).max() <= 1


def test_diffusers_alone_loads_the_self_contained_folder(published, tmp_path):
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    alone |= {"HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "1"}
    run_fresh(ALONE, published / "self_contained", cwd=tmp_path, env=alone)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pipe, halves = make_pipeline(), {"image": torch.zeros(2, 3, 16, 16), "mask": torch.eye(16)}
    expected = pipe([0, 3], generator=generators(5, 6), output_type="pt").images
    edited = pipe([0, 3], generator=generators(5, 6), output_type="pt", **halves).images
    torch.set_num_threads(threads)
    assert torch.equal(torch.load(tmp_path / "edited.pt", weights_only=True), edited)
    for name in ("images", "again", "after"):
        assert torch.equal(torch.load(tmp_path / f"{name}.pt", weights_only=True), expected), name


def test_code_needs_trust(published):
    with pytest.raises(ValueError, match="trust_remote_code"):
        LatentPipeline.from_pretrained(published / "self_contained")


CONFIGS = {"conv_autoencoder": {"bottleneck": {"kind": "gaussian", "dim": 3}}}
PACKED = [(slot, kind) for slot in ("tokenizers", "networks", "objectives") for kind in kinds(slot)]


@pytest.mark.parametrize("slot, kind", PACKED)
def test_every_component_packs_into_one_file(slot, kind):
    cls = find(slot, kind)
    text = pack(cls.__module__, cls.__name__, CONFIGS.get(kind, {}))
    assert not re.findall(r"^\s*(?:from|import) pipeline", text, flags=re.MULTILINE)
    namespace = {"__name__": f"packed_{kind}"}
    exec(compile(text, kind, "exec"), namespace)
    assert namespace[cls.__name__].__doc__ == cls.__doc__


def test_packing_tells_names_apart(tmp_path):
    text = pack("pipeline.objectives.flow_matching", "FlowMatching", {})
    namespace = {"__name__": "packed"}
    exec(compile(text, "packed", "exec"), namespace)
    ours, theirs = find("objectives", "flow_matching")(), namespace["FlowMatching"]()
    network, code = make_network(), Code(z=torch.randn(2, 16, 3))
    condition = Condition(labels=torch.tensor([0, 1]))
    randomness = FlowRandomness(torch.tensor([0.2, 0.9]), torch.randn(2, 16, 3))
    for name, term in ours.loss(network, code, condition, randomness).items():
        assert torch.equal(term, theirs.loss(network, code, condition, randomness)[name])


def test_a_component_that_only_its_source_names_is_packed():
    spec = dict(image_size=8, bottleneck={"kind": "identity", "dim": 3}, width=8, multipliers=[1], groups=4)
    text = pack("pipeline.tokenizers.conv_autoencoder", "ConvAutoencoder", {"bottleneck": spec["bottleneck"]})
    namespace = {"__name__": "packed"}
    exec(compile(text, "packed", "exec"), namespace)
    assert type(namespace["ConvAutoencoder"](**spec).neck).__name__ == "Identity"


def test_the_stock_autoencoder_is_the_same_function(published):
    stock = AutoencoderKL.from_pretrained(published / "stock" / "vae")
    ours, images = make_tokenizer(), torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        mean, std = ours.moments(images)
        posterior = stock.encode(images).latent_dist
        maps = mean.transpose(1, 2).unflatten(2, (4, 4))
        assert torch.allclose(posterior.mean, maps, atol=1e-5)
        assert torch.allclose(posterior.std, std.transpose(1, 2).unflatten(2, (4, 4)), atol=1e-5)
        assert torch.allclose(stock.decode(maps).sample, ours.decode(Code(z=mean)), atol=1e-5)
    assert stock.config.scaling_factor == 1


@pytest.mark.parametrize("arguments", [{}, {"patch_size": 2}, {"outputs": 2}])
def test_the_stock_transformer_is_the_same_function(arguments, tmp_path):
    network = make_network(4, **arguments)
    network.stock().model.save_pretrained(tmp_path)
    stock = DiTTransformer2DModel.from_pretrained(tmp_path)
    for block in stock.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    z, u, labels = torch.randn(3, 16, 3), torch.tensor([0.999, 0.5, 0.013]), torch.tensor([0, 4, 2])
    with torch.no_grad():
        ours = network(z, u, Condition(labels=labels)).transpose(1, 2).unflatten(2, (4, 4))
        theirs = stock(z.transpose(1, 2).unflatten(2, (4, 4)), 1000 * u, labels).sample
    assert torch.allclose(ours, theirs, atol=1e-5) and ours.std() > 0.05


def test_the_line_that_the_stock_transformers_note_gives_is_the_one_it_needs(published):
    note = (published / "stock" / "transformer" / "README.md").read_text()
    transformer = DiTTransformer2DModel.from_pretrained(published / "stock" / "transformer")
    exec("\n".join(line[4:] for line in note.splitlines() if line.startswith("    ")), {"transformer": transformer})
    assert {block.norm1.emb.time_proj.downscale_freq_shift for block in transformer.transformer_blocks} == {0}


@pytest.mark.parametrize(
    "arguments",
    [
        {"position": "rotary"},
        {"norm": "rms"},
        {"feed_forward": "swiglu"},
        {"query_key_norm": True},
        {"time_direction": "data"},
        {"time_scale": 1.0},
        {"feed_forward_ratio": 2.0},
        {"num_classes": 0},
    ],
)
def test_other_switches_have_no_stock_class(arguments):
    with pytest.raises(ValueError, match="DiTTransformer2DModel") as error:
        make_network(**arguments).stock()
    assert "\n" not in str(error.value)


def test_stock_folders_leave_out_what_does_not_fit(tmp_path, capsys):
    pipe = make_pipeline(network=make_network(norm="rms"))
    models = {"network": pipe.network, "tokenizer": pipe.tokenizer}
    assert len(stage.write_stock_folders(models, tmp_path)) == 1 and "norm=rms" in capsys.readouterr().out
    assert not (tmp_path / "transformer").exists() and (tmp_path / "vae").exists()
    pipe.tokenizer.config.bottleneck["kind"] = "identity"
    with pytest.raises(ValueError, match="publish.stock=false"):
        stage.write_stock_folders(models, tmp_path / "none")


def test_a_run_without_classes_is_published(tmp_path):
    recipe = make_recipe(sample={"images": 7, "steps": 2})
    work = make_run(tmp_path / "plain", num_classes=0)
    stage.run(recipe, work, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "without classes" in text and "class_labels" not in text and "num_images=3" in text
    assert not (tmp_path / "out" / "self_contained").exists()


def test_a_pipeline_that_does_not_come_back_is_not_published(tmp_path):
    pipe, other = make_pipeline(), make_pipeline()
    randomised(other.network, 9)
    other.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="does not make the images"):
        stage.load_again(pipe, tmp_path, torch.device("cpu"), None, None)


CLASHING = {
    "first_part": '''
"""First."""

from pathlib import Path

count = 0
scale = 2


def double(value: int, by: int = scale) -> int:
    return value * by


def name() -> str:
    return Path("a").name
''',
    "second_part": '''
"""Second."""

import pathlib as Path

from pipeline import first_part
from pipeline.first_part import double as twice
from pipeline.first_part import name

count = 10
scale = 5


def double(value: int, scale: int = scale) -> int:
    """A parameter, a class's own name and a variable of a comprehension hide what is at the top."""
    return twice(value) + scale + sum(count for count in range(3))


def counted() -> int:
    global count
    count += 1
    return count


class SecondPart:
    count = 100

    def double(self) -> list[int]:
        from pipeline.first_part import scale as other

        return [double(1), self.count, count, scale, other, first_part.double(4), counted()]

    def where(self) -> list[str]:
        return [name(), Path.PurePath("b").name]
''',
}


def test_names_that_two_modules_use_are_told_apart(tmp_path, monkeypatch):
    for module, text in CLASHING.items():
        (tmp_path / f"{module}.py").write_text(text)
    monkeypatch.setattr(pipeline, "__path__", [*pipeline.__path__, str(tmp_path)])
    namespace = {"__name__": "packed"}
    exec(compile(packed := pack("pipeline.second_part", "SecondPart", {}), "packed", "exec"), namespace)
    second = namespace["SecondPart"]()
    assert second.double() == [2 + 5 + 3, 100, 10, 5, 2, 8, 11] and second.where() == ["a", "b"]
    assert "First." in packed and "from pipeline" not in packed


def test_nothing_published_tells_where_the_makers_files_lie(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["/home/jane.doe/run.py", "all", "/home/jane.doe/r.yaml", "seed=1", "a.b={c: ~jane.doe/x y}"]
    monkeypatch.setattr(sys, "argv", words)
    (tmp_path / "jane.doe" / "new imgs").mkdir(parents=True)
    source = {"kind": "image_folder", "path": "jane.doe/new imgs"}
    weak = {"folder": "/home/jane.doe/weak"}
    recipe = make_recipe(
        data={"source": source, "size": 16},
        evaluate={"reference": "/home/jane.doe/statistics.npz"},
        publish={"self_contained": True, "stock": True},
        weights={"vgg16": "~jane.doe/vgg16.pth"},
    )
    work = make_run(tmp_path / "runs" / "tiny")
    note = json.loads((work.root / "generator" / "made_from.json").read_text())
    (work.root / "generator" / "made_from.json").write_text(json.dumps(note | {"command": "/home/jane.doe/run.py all"}))
    numbers = json.loads((work.root / "report" / "metrics.json").read_text())
    numbers["fd_pixels"]["protocol"]["references"] = "20 of /home/jane.doe/imgs, train"
    (work.root / "report" / "metrics.json").write_text(json.dumps(numbers))
    assemble = stage.assemble

    def assemble_with_weak(*arguments):
        pipe = assemble(*arguments)
        pipe.network.register_to_config(_name_or_path="/home/jane.doe/network")
        pipe.weak = make_network()
        pipe.register_to_config(sampling={**pipe.config.sampling, "weak": weak["folder"]})
        pipe.defaults = replace(pipe.defaults, weak=weak["folder"])
        return pipe

    monkeypatch.setattr(stage, "assemble", assemble_with_weak)
    with work.publish("pipeline", "1") as out:
        stage.run(recipe, work, out)
    folder = work.root / "pipeline"
    telling = [path.name for path in folder.rglob("*") if path.is_file() and b"jane" in path.read_bytes()]
    assert not telling
    made = json.loads((folder / "made_from.json").read_text())["command"]
    assert made == "run.py all r.yaml seed=1 a.b=..."
    saved = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert saved["data"]["source"]["path"] == "new imgs" and saved["weights"]["vgg16"] == "vgg16.pth"
    text = (folder / "README.md").read_text()
    assert "trained on new imgs" in text and "parameters (weak)" in text
    assert LatentPipeline.from_pretrained(folder).defaults.weak == "weak"

"""The 1-D tokenizer: its shapes, what each phase moves, what its pixel decoder starts from, and what is refused."""

from pathlib import Path

import generating
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from support.tiny_pipeline import make_recipe, randomised
from torch import Tensor

from pipeline.checks.recipe import check_recipe
from pipeline.checks.tokenizer import check_tokenizer
from pipeline.code import Code, Condition, LatentSpec
from pipeline.commands.import_checkpoint import import_checkpoint
from pipeline.components import Arguments, build, check
from pipeline.draws import StepDraws
from pipeline.images.reading import ImageBatch
from pipeline.losses.pixel import Pixel
from pipeline.losses.proxy_codes import ProxyCodes
from pipeline.networks.diffusion_transformer import DiffusionTransformer
from pipeline.objectives.flow_matching import FlowMatching
from pipeline.published.titok import convert
from pipeline.recipes.building import count_parameters
from pipeline.recipes.loops import Loop
from pipeline.recipes.schema import load
from pipeline.recipes.tokenizer_training import Phase
from pipeline.runs.workspace import Workspace
from pipeline.tokenizers.conv_autoencoder import ConvAutoencoder
from pipeline.tokenizers.maskgit_vqgan import MaskgitVqgan
from pipeline.tokenizers.titok import TiTok
from pipeline.training.reconstruction import Reconstruction
from stages import train_tokenizer

CODES = {"kind": "vector_quantize", "dim": 4, "vocab": 12}
SIZES = {"tokens": 6, "width": 24, "depth": 2, "heads": 3, "patch_size": 4}
PROXY = {"vocab": 10, "dim": 6, "width": 8, "multipliers": [1, 1, 2], "blocks": 1}
OF_PROXY = {f"proxy_{name}": value for name, value in PROXY.items()}
GOLDEN = Path(__file__).parents[1] / "golden"


def titok(**changes) -> TiTok:
    return TiTok(**({"image_size": 16, "bottleneck": CODES} | SIZES | changes)).eval()


def two_stage(**changes) -> TiTok:
    return titok(**({"head": "proxy"} | OF_PROXY | changes))


def pictures(count: int = 4, size: int = 16) -> Tensor:
    return torch.rand(count, 3, size, size) * 2 - 1


def make_proxy() -> MaskgitVqgan:
    bottleneck = {"kind": "vector_quantize", "dim": PROXY["dim"], "vocab": PROXY["vocab"], "unit_norm": False}
    sizes = {name: PROXY[name] for name in ("width", "multipliers", "blocks")}
    return randomised(MaskgitVqgan(16, bottleneck, **sizes), 3)


@pytest.fixture
def proxy(tmp_path) -> str:
    make_proxy().save_pretrained(tmp_path / "proxy")
    return str(tmp_path / "proxy")


def phase(train: str, **weights: float) -> Phase:
    return Phase(Loop(1, {"tokenizer": 1e-3}), weights, train=train)


def first_phase(tokenizer: TiTok, proxy: str) -> Reconstruction:
    of = phase("transformers", proxy_codes=1.0, vq=1.0, commit=0.25)
    of.losses = {"proxy_codes": {"kind": "proxy_codes", "path": proxy}}
    return Reconstruction(tokenizer, of, {"proxy_codes": ProxyCodes(proxy)})


def second_phase(tokenizer: TiTok) -> Reconstruction:
    return Reconstruction(tokenizer, phase("decoder", pixel=1.0, vq=0.0, commit=0.0), {"pixel": Pixel("l2")})


def turn(task: Reconstruction, images: Tensor) -> dict[str, Tensor]:
    """The terms of one turn, after its backward."""
    draws = StepDraws(0, 0, slice(0, len(images)), len(images))
    ((_, terms),) = task.turns(ImageBatch(images), draws, 0)
    sum(terms.values()).backward()
    return terms


@torch.no_grad()
@pytest.mark.parametrize("bottleneck", [CODES, {"kind": "gaussian", "dim": 5}, {"kind": "identity", "dim": 3}])
@pytest.mark.parametrize(
    "size, changes",
    [
        (16, {}),
        (16, {"tokens": 1, "decoder_patch_size": 16}),
        (24, {"tokens": 7, "patch_size": 8, "decoder_patch_size": 2, "decoder_width": 16, "decoder_heads": 2}),
        (12, {"patch_size": 1, "decoder_depth": 1, "decoder_patch_size": 3, "interleaved": True}),
        (16, {"head": "proxy", "decoder_patch_size": 4, "patch_size": 8} | OF_PROXY),
    ],
)
def test_any_number_of_tokens_and_any_patches(size, changes, bottleneck):
    tokenizer, images = titok(image_size=size, bottleneck=bottleneck, **changes), pictures(2, size)
    arguments = Arguments.from_config(tokenizer)
    tokens = changes.get("tokens", 6)
    assert TiTok.geometry(arguments) == LatentSpec((tokens,), bottleneck["dim"], bottleneck.get("vocab", 0))
    code, rebuilt = tokenizer.encode(images), tokenizer(images)
    assert code.z.shape == (2, *tokenizer.spec.shape)
    torch.testing.assert_close(tokenizer.decode(code), rebuilt.images)
    assert rebuilt.images.shape == images.shape and set(rebuilt.terms) == set(TiTok.terms(arguments))
    assert set(rebuilt.features) == set(tokenizer.can.features)
    if code.ids is not None:
        torch.testing.assert_close(tokenizer.decode(Code(ids=code.ids)), rebuilt.images)


@torch.no_grad()
def test_encoding_is_deterministic_and_image_by_image():
    tokenizer, images = randomised(titok(), 1), pictures(3)
    code = tokenizer.encode(images)
    assert torch.equal(tokenizer.encode(images).ids, code.ids) and len(code.ids.unique()) > 1
    assert torch.equal(tokenizer.encode(images[1:2]).ids, code.ids[1:2])


@torch.no_grad()
def test_every_token_sees_the_whole_image():
    tokenizer, images = randomised(titok(), 1), pictures(1)
    features = tokenizer.features(images)
    images[..., -1, -1] += 0.5
    assert ((tokenizer.features(images) - features).abs().amax(-1) > 1e-6).all()


def test_a_new_tokenizer_rebuilds_better_after_a_few_steps():
    torch.manual_seed(0)
    tokenizer, images = titok(bottleneck={"kind": "identity", "dim": 8}), pictures(4)
    task = Reconstruction(tokenizer, phase("all", pixel=1.0), {"pixel": Pixel("l2")})
    optimizer, errors = torch.optim.AdamW(tokenizer.parameters(), 1e-3), []
    for _ in range(40):
        optimizer.zero_grad()
        errors.append(turn(task, images)["pixel"].item())
        optimizer.step()
    assert errors[-1] < 0.5 * errors[0]


@torch.no_grad()
def test_a_saved_folder_is_whole_without_the_proxy(proxy, tmp_path):
    tokenizer = two_stage(proxy_start=proxy)
    tokenizer.mean.fill_(0.3)
    tokenizer.save_pretrained(tmp_path / "saved")
    Path(proxy, "config.json").unlink()
    images, again = pictures(), TiTok.from_pretrained(tmp_path / "saved")
    assert again.config.proxy_start is None
    assert torch.equal(again(images).images, tokenizer(images).images)
    assert torch.equal(again.encode(images).z, tokenizer.encode(images).z)


@torch.no_grad()
def test_sure_logits_paint_what_the_proxy_decodes(proxy):
    tokenizer, other = two_stage(proxy_start=proxy), make_proxy()
    ids = torch.randint(0, PROXY["vocab"], (3, 16))
    logits = 100.0 * torch.nn.functional.one_hot(ids, PROXY["vocab"])
    torch.testing.assert_close(
        tokenizer.output.decode_logits(logits) * 2 - 1, other.decode(Code(ids=ids)), atol=1e-4, rtol=0
    )


@torch.no_grad()
def test_the_proxy_loss_is_the_cross_entropy_to_the_proxy_s_ids(proxy):
    loss, images = ProxyCodes(proxy).train(), pictures(2)
    assert not loss.extractor.training and not any(p.requires_grad for p in loss.parameters())
    ids = make_proxy().encode(images).ids
    assert len(ids.unique()) > 1
    rebuilt = two_stage()(images, pixels=False)
    assert rebuilt.images is None
    expected = -rebuilt.features["proxy_logits"].log_softmax(-1).gather(-1, ids[..., None]).mean()
    torch.testing.assert_close(loss(images, rebuilt)["proxy_codes"], expected)


@pytest.mark.parametrize("make", ["first", "second", "all", "encoder", "one stage"])
def test_every_trained_parameter_of_a_phase_has_a_gradient_and_no_other(make, proxy):
    tokenizer = randomised(titok() if make == "one stage" else two_stage(), 1).train()
    if make == "first":
        task, part = first_phase(tokenizer, proxy), "transformers"
    elif make == "second":
        task, part = second_phase(tokenizer), "decoder"
    else:
        part = "encoder" if make == "encoder" else "all"
        task = Reconstruction(tokenizer, phase(part, pixel=1.0, vq=1.0, commit=0.25), {"pixel": Pixel()})
    painted = []
    tokenizer.output.register_forward_hook(lambda *_: painted.append("patches"))
    if make != "one stage":
        tokenizer.output.decoder.register_forward_hook(lambda *_: painted.append("pixels"))
    turn(task, pictures())
    assert bool(painted) == (make != "first"), "pixels are made where a loss looks at them"
    trained = {id(p) for p in tokenizer.trainable(part)}
    for name, parameter in tokenizer.named_parameters():
        moved = parameter.grad is not None and bool((parameter.grad != 0).any())
        assert moved == (id(parameter) in trained), name


def test_parts_hold_what_they_say():
    tokenizer = two_stage()
    held = {part: {id(p) for p in tokenizer.trainable(part)} for part in tokenizer.can.parts}
    pixels = {id(tokenizer.output.codebook), *map(id, tokenizer.output.decoder.parameters())}
    assert held["encoder"] | held["decoder"] == held["all"] and not held["encoder"] & held["decoder"]
    assert held["transformers"] == held["all"] - pixels and id(tokenizer.last_layer) in pixels
    with pytest.raises(ValueError, match="no part 'transformer'; its parts: all, encoder, decoder, transformers"):
        list(tokenizer.trainable("transformer"))
    assert not {name for name, _ in tokenizer.named_children()} & set(tokenizer.config)


def test_gradient_checkpointing_changes_no_gradient():
    tokenizer, images = two_stage(), pictures(2)
    tokenizer(images).images.square().sum().backward()
    plain = [p.grad.clone() for p in tokenizer.parameters() if p.grad is not None]
    tokenizer.zero_grad()
    tokenizer.enable_gradient_checkpointing()
    tokenizer(images).images.square().sum().backward()
    again = [p.grad for p in tokenizer.parameters() if p.grad is not None]
    for ours, theirs in zip(again, plain, strict=True):
        torch.testing.assert_close(ours, theirs)


def recipe_of(proxy: str, **model):
    start = {"kind": "titok", "bottleneck": CODES, "head": "proxy", "proxy_start": proxy} | SIZES | OF_PROXY
    loop = {"steps": 2, "batch": 4, "lr": {"tokenizer": 1e-2}, "warmup": 0, "ema": 0.0}
    first = {"train": "transformers", "losses": {"proxy": {"kind": "proxy_codes", "path": proxy}}, "loop": loop}
    first["weights"] = {"proxy_codes": 1.0, "vq": 1.0, "commit": 0.25}
    second = {"train": "decoder", "weights": {"pixel": 1.0, "vq": 0.0, "commit": 0.0}, "loop": loop}
    phases = {"proxy_codes": first, "pixels": second}
    return make_recipe(tokenizer={"model": start | model, "phases": phases})


def test_the_stage_trains_the_two_phases_one_after_the_other(proxy, tmp_path):
    recipe, made = recipe_of(proxy), {}
    check_tokenizer(recipe)
    for name, phases in (("one", 1), ("both", 2)):
        recipe = recipe_of(proxy)
        recipe.tokenizer.phases = dict(list(recipe.tokenizer.phases.items())[:phases])
        (tmp_path / name).mkdir()
        train_tokenizer.run(recipe, Workspace(tmp_path, Accelerator(cpu=True)), tmp_path / name)
        made[name] = TiTok.from_pretrained(tmp_path / name).state_dict()
    start = make_proxy().state_dict()
    for name, value in made["one"].items():
        of_pixels = name.startswith(("output.codebook", "output.decoder"))
        if of_pixels:
            theirs = "neck.codebook" if name == "output.codebook" else name.removeprefix("output.")
            assert torch.equal(value, start[theirs]), name
        moved = not torch.equal(made["both"][name], value)
        assert moved == name.startswith(("decoder", "output")), name


def test_a_generator_learns_on_a_row_of_tokens():
    tokenizer = titok(bottleneck={"kind": "gaussian", "dim": 4})
    with torch.no_grad():
        code = tokenizer.encode(pictures(4))
    network = DiffusionTransformer(list(tokenizer.spec.grid), 4, 3, depth=1, width=16, heads=2)
    objective, condition = FlowMatching(), Condition(labels=torch.tensor([0, 1, 2, 0]))
    draws, optimizer, losses = StepDraws(0, 0, slice(0, 4), 4), torch.optim.AdamW(network.parameters(), 1e-2), []
    for _ in range(5):  # of one and the same batch
        losses.append(objective.loss(network, code, condition, objective.draw(code, draws))["flow"])
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    drawn = generating.sample(objective, network, condition, tokenizer.spec, draws, steps=2)
    assert tokenizer.decode(drawn).shape == (4, 3, 16, 16)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"heads": 5}, "width of 24 is not divisible by 5 heads"),
        ({"decoder_width": 20}, "width of 20 is not divisible by 3 heads"),
        ({"patch_size": 5}, "16 pixels do not divide by patch_size 5"),
        ({"decoder_patch_size": 3}, "do not divide by decoder_patch_size 3"),
        ({"head": "proxy"}, "5 levels makes 16x16 pixels per patch; set decoder_patch_size=16"),
        ({"proxy_start": "folder"}, "proxy_start is for the pixel decoder of head=proxy"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_without_building(changes, words):
    with pytest.raises(ValueError, match=words) as caught:
        TiTok.geometry(Arguments.complete(TiTok, {"image_size": 16, "bottleneck": CODES} | SIZES | changes))
    assert "\n" not in str(caught.value)


@torch.no_grad()
def test_images_and_codes_of_other_sizes_are_refused():
    with pytest.raises(ValueError, match="images of 16x16 pixels, not 16x20"):
        titok().encode(torch.zeros(1, 3, 16, 20))
    with pytest.raises(ValueError, match="a code of 7 tokens is not this tokenizer's, which has 6"):
        titok().render(torch.zeros(1, 7, 4))


def test_folders_that_cannot_be_a_start_or_a_proxy_are_refused(proxy, tmp_path):
    for changes, words in (
        ({"proxy_start": str(tmp_path / "none")}, "holds no config.json"),
        ({"proxy_start": proxy, "proxy_vocab": 11}, r"codebook is \[10, 6\] in .* and \[11, 6\] here"),
        ({"proxy_start": proxy, "proxy_blocks": 2}, "proxy_blocks to the folder's"),
    ):
        with pytest.raises(ValueError, match=words):
            two_stage(**changes)
    with torch.device("meta"):
        assert two_stage(proxy_start="none").last_layer.is_meta, "a check of a recipe reads no folder"
    arguments = {"bottleneck": {"kind": "gaussian", "dim": 3}, "width": 8, "multipliers": [1, 2, 2], "blocks": 1}
    ConvAutoencoder(16, **arguments).save_pretrained(tmp_path / "continuous")
    with pytest.raises(ValueError, match="name the folder of a maskgit_vqgan"):
        two_stage(proxy_start=str(tmp_path / "continuous"))
    with pytest.raises(ValueError, match="one id a place of a map"):
        ProxyCodes(str(tmp_path / "continuous"))
    (tmp_path / "continuous" / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    with pytest.raises(ValueError, match="AutoencoderKL, which is not a tokenizer"):
        ProxyCodes(str(tmp_path / "continuous"))
    loss, images = ProxyCodes(proxy), pictures(1)
    with pytest.raises(ValueError, match="gives 16 ids of 10, the tokenizer predicts 16 of 11"):
        loss(images, two_stage(proxy_vocab=11)(images))


@pytest.mark.parametrize(
    "where, changes, words",
    [
        ("proxy_codes", {"train": "transformer"}, "no part 'transformer'; did you mean 'transformers'"),
        ("proxy_codes", {"train": "all"}, "none compares images.*set train=encoder, or set train=transformers"),
        ("proxy_codes", {"losses": {"proxy": {"kind": "proxy_codes"}}}, "path is missing"),
        ("model", {"head": "pixels", "proxy_start": None}, "reads proxy_logits, which this tokenizer does not make"),
    ],
)
def test_phases_that_cannot_train_are_refused_by_the_check(where, changes, words):
    recipe = recipe_of("a folder that is not there")
    check_tokenizer(recipe)
    if where == "model":
        recipe.tokenizer.model |= changes
    else:
        for name, value in changes.items():
            setattr(recipe.tokenizer.phases[where], name, value)
    with pytest.raises(ValueError, match=words) as caught:
        check_tokenizer(recipe)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "fragment, tokens, millions", [("l32", 32, 641), ("b64", 64, 205), ("s128", 128, 84), ("bl128_vae", 128, 390)]
)
def test_the_published_sizes(fragment, tokens, millions, tmp_path):
    generator = (
        "network: {kind: diffusion_transformer, depth: 1, width: 32, heads: 2}, objective: {kind: flow_matching}"
    )
    loop = "weights: {flow: 1.0}, loop: {steps: 1, lr: {network: 1.0e-4}}"
    text = f"name: a\ninclude: [data/imagenet256, tokenizers/titok_{fragment}]\ngenerator: {{{generator}, {loop}}}\n"
    (tmp_path / "a.yaml").write_text(text)
    recipe = load(str(tmp_path / "a.yaml"))
    spec = check_tokenizer(recipe).spec
    assert spec.grid == (tokens,) and spec.vocab == (0 if "vae" in fragment else 4096)
    if "vae" in fragment:
        check_recipe(recipe)
    with torch.device("meta"):
        built = build("tokenizers", recipe.tokenizer.model, image_size=256)
    assert round(count_parameters(built) / 1e6) == millions


@torch.no_grad()
def test_an_import_is_a_folder_and_what_is_unexpected_an_error(tmp_path, capsys):
    state = load_file(GOLDEN / "titok_vae" / "state.safetensors")
    with pytest.raises(ValueError, match="heads of width 48 cannot be told .*state heads="):
        convert(state)
    tokenizer = convert(state, 3, 3)["tokenizer"]
    assert tokenizer.config.image_size == 16 and tokenizer.config.decoder_patch_size == 4
    with pytest.raises(ValueError, match="unexpected.*encoder.extra"):
        convert(state | {"encoder.extra": torch.zeros(1)}, 3, 3)
    with pytest.raises(ValueError, match="not a TiTok checkpoint"):
        convert({"blocks.0.weight": torch.zeros(1)})
    codes = load_file(GOLDEN / "titok_two_stage_vq" / "state.safetensors")
    first = {name: value for name, value in codes.items() if not name.startswith("pixel_")}
    with pytest.raises(ValueError, match="not a two-stage TiTok checkpoint: it has no pixel_quantize"):
        convert(first, 3, 2)
    as_published = titok(
        image_size=16, patch_size=8, width=512, heads=8, depth=1, bottleneck={"kind": "gaussian", "dim": 2}
    )
    torch.save(published(as_published), tmp_path / "file.bin")
    import_checkpoint(["titok", str(tmp_path / "file.bin"), str(tmp_path / "out")])
    again, images = TiTok.from_pretrained(tmp_path / "out"), pictures(1)
    assert torch.equal(again(images).images, as_published(images).images)
    check("tokenizers", {"kind": "titok"} | {n: v for n, v in again.config.items() if not n.startswith("_")})


def published(tokenizer: TiTok) -> dict[str, Tensor]:
    """The weights of a tokenizer that makes pixels directly, under the published names."""
    words = {
        "encoder.tokens": "latent_tokens",
        "class_token": "class_embedding",
        "place_positions": "positional_embedding",
        "token_positions": "latent_token_positional_embedding",
        "norm_in": "ln_pre",
        "norm_out": "ln_post",
        "blocks": "transformer",
        "attention.qkv.": "attn.in_proj_",
        "attention.proj": "attn.out_proj",
        ".norm": ".ln_",
        ".up": ".mlp.c_fc",
        ".down": ".mlp.c_proj",
        "patch_embedding": "patch_embed",
        "encoder.projection": "encoder.conv_out",
        "decoder.embedding": "decoder.decoder_embed",
        "output.patches": "decoder.ffn.0",
        "output.conv_out": "decoder.conv_out",
    }
    state = {}
    for name, value in tokenizer.state_dict().items():
        kernel = name in ("encoder.projection.weight", "output.patches.weight")
        value = value[:, :, None, None] if kernel else value[None] if name == "decoder.mask_token" else value
        for ours, theirs in words.items():
            name = name.replace(ours, theirs)
        state[name] = value
    return {name: value for name, value in state.items() if name not in ("mean", "std")}

"""LARP's tokenizer of images and clips in training, with its prior; its published form has pixels in [0, 1]."""

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from golden_kinds import Case, bare
from pipeline.code import Code
from pipeline.draws import Draws, GivenDraws
from pipeline.tokenizers.larp import Larp

MATCHES = "models.larp_tokenizer.LARPTokenizer"
REPOSITORY = "hywang66/LARP"
PREFIX = re.compile(r"prior_grad\.|rec_grad\.")


def outputs(case: Case) -> dict[str, Tensor]:
    tokenizer, clip = imported(case), frames(case, case.inputs["video"] * 2 - 1)
    return evaluated(case, tokenizer, clip) | trained(case, tokenizer.train(), clip)


def imported(case: Case) -> Larp:
    stated = case.meta["constructor"]
    codebook = stated["bottleneck"]["args"]["regularizer"]["args"]
    options = {
        "image_size": stated["input_size"],
        "frames": stated["frame_num"],
        "heads": stated["encoder_num_heads"],
        "decoder_heads": stated["decoder_num_heads"],
        "prior_heads": int(re.search(r"(\d+) heads", case.meta["constructor_notes"])[1]),
        "temperature": codebook["stochastic_temperature"],
    }
    tokenizer = bare(case.imported("larp", **options)["tokenizer"])
    prior = stated["prior_model"]
    peak = prior["mix_ss_peak_steps_ratio"] * case.number("max_steps", "training mode")
    tokenizer.register_to_config(
        prior_rounds=prior["n_rounds"], prior_share=prior["mix_ss_max_ratio"], prior_rise=round(peak)
    )
    tokenizer.prior.dropout = 0.0  # off in the case
    for block in tokenizer.prior.blocks:
        block.shape = block.shape._replace(residual_dropout=0.0, attention_dropout=0.0)
    return tokenizer


@torch.no_grad()
def evaluated(case: Case, tokenizer: Larp, clip: Tensor) -> dict[str, Tensor]:
    h = tokenizer.features(clip)
    code, _ = tokenizer.neck(h)
    latents, rows = tokenizer.neck.latents(h), tokenizer.neck.rows()
    temperature = tokenizer.neck.sampling.temperature / 2
    return {
        "projected": h,
        "unit_projected": latents,
        "code_probabilities": (latents @ rows.T / temperature).softmax(dim=-1),
        "indices_deterministic": code.ids,
        "reconstruction_deterministic": shown(case, tokenizer.decode(Code(z=code.z))),
        "decoded_indices": shown(case, tokenizer.decode(Code(ids=case.inputs["codes"]))),
    }


def trained(case: Case, tokenizer: Larp, clip: Tensor) -> dict[str, Tensor]:
    draws = StoredDraws(case, tokenizer, clip)
    rebuilt = tokenizer(clip, draws=draws)
    code, terms = rebuilt.code, rebuilt.terms
    weight = case.meta["constructor"]["bottleneck"]["args"]["regularizer"]["args"]["commitment_loss_weight"]
    quantiser = terms["vq"] + weight * terms["commit"]
    ranks = tokenizer.prior_logits(code, draws)[0].argsort(dim=-1, descending=True)  # of the first round
    hits = ranks == code.ids[:, 1:, None]
    predicted = tokenizer.prior(code.z[:, :-1])
    found = {
        "pred_frames": shown(case, rebuilt.images),
        "indices": code.ids,
        "quantised": code.z,
        "encoded": tokenizer.decoder.embedding(code.z),
        "loss_q": quantiser,
        "loss_commit": terms["commit"],
        "loss_codebook": terms["vq"],
        "loss_latent_ce": terms["prior"],
        "prior_top1": 100 * hits[..., :1].sum(dim=-1).float().mean(),  # in percent
        "prior_top5": 100 * hits[..., :5].sum(dim=-1).float().mean(),
        "prior_prediction": torch.cat([code.z[:, :1], predicted], dim=1),
    }
    losses = {"prior_grad": terms["prior"], "rec_grad": quantiser + (rebuilt.images - clip).abs().mean() / 2}
    for prefix, loss in losses.items():
        tokenizer.zero_grad()
        loss.backward(retain_graph=True)
        found |= {name: gradient(tokenizer, name) for name in case.stored_names() if name.startswith(f"{prefix}.")}
    return found


def gradient(tokenizer: nn.Module, name: str) -> Tensor:
    """That of a parameter under its published name."""
    ours = {
        "bottleneck.in_linear.weight": "encoder.projection.weight",
        "bottleneck.regularizer.embedding.weight": "neck.codebook",
        "prior_model.head.weight": "prior.head.weight",
        "prior_model.pos_emb": "prior.positions",
    }[PREFIX.sub("", name)]
    parameter = tokenizer.get_parameter(ours)
    slope = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
    return slope[None] if name.endswith("pos_emb") else slope


class StoredDraws(Draws):
    """The stored ids as uniform numbers that choose them, each in the middle of its part of the distribution."""

    def __init__(self, case: Case, tokenizer: Larp, clip: Tensor):
        self.case, self.tokenizer, self.step = case, tokenizer, int(case.number("global_step", "training mode"))
        with torch.no_grad():
            neck = tokenizer.neck
            latents = neck.latents(tokenizer.features(clip))
            shares = (latents @ neck.rows().T / (neck.sampling.temperature / 2)).softmax(dim=-1)
            ids = case.inputs["draw_0"].reshape(len(clip), -1)
            self.given = {"assignment": middle(shares, ids), "prior.mixed": case.inputs["draw_1"][..., 0]}
            self.rows, self.first = neck.rows(), F.embedding(ids, neck.rows())

    def uniform(self, name: str, shape: tuple[int, ...] = ()) -> Tensor:
        if name not in self.given:  # the codes that the prior draws after the round before
            self.given[name] = self.drawn(int(name.removeprefix("prior.drawn_")))
        return self.given[name]

    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        raise ValueError(f"the case has no {name}")

    @torch.no_grad()
    def drawn(self, number: int) -> Tensor:
        given = GivenDraws(self.given)
        share = self.tokenizer.config.prior_share * min(1.0, self.step / self.tokenizer.config.prior_rise)
        logits = self.tokenizer.prior.rounds(self.first, self.rows, given, number, share)[-1]
        ids = self.case.inputs[f"draw_{number + 1}"].reshape(logits.shape[:2])
        return middle(logits.softmax(dim=-1), ids)


def middle(shares: Tensor, ids: Tensor) -> Tensor:
    ends = shares.cumsum(dim=-1).gather(-1, ids[..., None])[..., 0]
    return ends - shares.gather(-1, ids[..., None])[..., 0] / 2


def frames(case: Case, clip: Tensor) -> Tensor:
    """A clip as the tokenizer takes it: an image where it has one frame."""
    return clip[:, :, 0] if case.meta["constructor"]["frame_num"] == 1 else clip


def shown(case: Case, images: Tensor) -> Tensor:
    """[B, C, T, H, W] in the published range."""
    return (images if images.ndim == 5 else images[:, :, None]) / 2 + 0.5

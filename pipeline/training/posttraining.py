"""The task of post-training a decoder on codes that the generator made."""

from typing import Any

from torch import nn

from pipeline.checks.posttraining import check_decoder_phase
from pipeline.code import Code, Condition
from pipeline.critics.base import Critic
from pipeline.draws import Draws, StepDraws
from pipeline.losses.base import Loss
from pipeline.recipes.tokenizer_training import Phase
from pipeline.tokenizers.base import Tokenizer, TokenizerOutput, TrainingInputs
from pipeline.training.reconstruction import Reconstruction
from pipeline.validation import at


class DecoderPlayer(nn.Module):
    """A tokenizer as a player that reads codes at unit scale, and decodes them to images."""

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, code: Code, condition: Condition | None = None, draws: Draws | None = None) -> TokenizerOutput:
        """With draws, which training gives, the decoder leaves out what it does in every training (drop path)."""
        if draws is None or not self.training:
            return TokenizerOutput(self.tokenizer.decode(code, condition), code, {})
        given = TrainingInputs(condition, draws)
        return TokenizerOutput(self.tokenizer.decode_for_training(code, given), code, {})


class DecoderTraining(Reconstruction):
    """`Reconstruction` from codes: a batch holds `code` besides `images`, and nothing before the decoder is run.

    Qiu et al., arXiv:2509.12474, section 4.3: real images are the target of every loss, and the real images of the
    critic. All but the decoder, with the layers from the code to it, is frozen, so that codes keep their meaning.
    """

    own_terms = False

    def __init__(self, tokenizer: Tokenizer, phase: Phase, losses: dict[str, Loss], critic: Critic | None = None):
        with at("phase"):
            check_decoder_phase(phase)
        super().__init__(tokenizer, phase, losses, critic)
        self.players["tokenizer"] = DecoderPlayer(tokenizer)

    def rebuild_by(self, player: nn.Module, batch: Any, draws: StepDraws, **arguments: Any) -> TokenizerOutput:
        return player(batch.code, batch.condition, draws)

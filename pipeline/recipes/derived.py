"""The arguments of components that follow from earlier stages."""

TEXT = ("text_tokens", "text_dim", "text_layers", "pooled_dim")  # of models that read captions

DERIVED = {  # what a recipe may not state, by slot
    "datasets": ("split",),
    "text_encoders": (),
    "tokenizers": ("image_size", "image_channels", *TEXT),
    "networks": (
        "grid",
        "levels",
        "segments",
        "dim",
        "vocab",
        "codebooks",
        "ends",
        "num_classes",
        "outputs",
        "class_token",
        "position_grid",
        *TEXT,
    ),
    "objectives": (),
    "similarities": (),
    "transplants": (),
    "solvers": (),
    "losses": ("extractor", "dim", "grid"),
    "critics": ("widths", "source", "channels"),
    "adversarial": (),
    "optimizers": (),
    "perturbations": (),
    "metrics": ("neighbours", "noise"),  # of `evaluate` and of a card
}

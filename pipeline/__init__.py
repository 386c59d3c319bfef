"""The parts of the line; `from pipeline import LatentPipeline` is what a user of a finished run needs."""

__all__ = ["LatentPipeline"]


def __getattr__(name: str):
    if name != "LatentPipeline":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pipeline.latent_pipeline import LatentPipeline  # torch and diffusers are imported only when it is asked for

    return LatentPipeline

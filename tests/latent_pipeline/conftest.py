"""A tiny pipeline and its folder."""

from pathlib import Path

import pytest
from support.tiny_pipeline import make_pipeline

from pipeline import LatentPipeline


@pytest.fixture(scope="module")
def pipe() -> LatentPipeline:
    return make_pipeline()


@pytest.fixture(scope="module")
def saved(pipe: LatentPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "pipeline"
    pipe.save_pretrained(folder)
    return folder

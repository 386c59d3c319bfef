"""A pipeline's own folder: loading it when it is whole, and saving it without a trace of this machine."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import ConfigMixin

from pipeline.files.writing import states_in
from pipeline.saved_folders import check_folder, fetch, finish_saving, forget_paths, naming_damage, refuse_pickles


class SavedPipeline:
    """Loading and saving of a diffusers pipeline, as diffusers does it, by safetensors alone."""

    _before_saving: Mapping[Path, os.stat_result] = {}  # the files of the folder that is being written, as they were

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> "SavedPipeline":
        """The pipeline of a folder or hub id; keyword arguments as diffusers' (torch_dtype, variant, revision, ...).

        Imports what model_index.json names below `pipeline.` and nothing else. Raises ValueError with one line when
        the folder is no pipeline, when weights are missing from it, or when a file is not what was saved.
        """
        folder = fetch(pretrained_model_name_or_path, kwargs)
        check_folder(folder, kwargs)
        with naming_damage(folder):
            return super().from_pretrained(folder, **kwargs | {"use_safetensors": True})

    def save_pretrained(
        self, save_directory: str | Path, safe_serialization: bool = True, *args: Any, **kwargs: Any
    ) -> None:
        """Write the pipeline's folder, as diffusers does, with ordinary file modes; code that came with it stays.

        Nothing in it tells where the pipeline and its parts lay on this machine. Raises ValueError for
        `safe_serialization=False`, since pickled weights are not loaded.
        With `push_to_hub=True` the finished folder is uploaded.
        """
        refuse_pickles("safe_serialization", safe_serialization)
        forget_paths(self, *(part for part in self.components.values() if isinstance(part, ConfigMixin)))
        self._before_saving = states_in(Path(save_directory))
        super().save_pretrained(str(save_directory), True, *args, **kwargs)
        finish_saving(self, Path(save_directory), self._before_saving)

    def _upload_folder(self, working_dir: str | Path, *args: Any, **kwargs: Any) -> Any:
        # diffusers uploads before its `save_pretrained` returns
        finish_saving(self, Path(working_dir), self._before_saving)
        return super()._upload_folder(working_dir, *args, **kwargs)

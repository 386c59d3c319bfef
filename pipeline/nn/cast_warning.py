"""Casting a model without diffusers' warning that no module is kept in float32."""

import logging
from typing import Any

from diffusers import ModelMixin

LOGGER = logging.getLogger("diffusers.models.modeling_utils")


class WithoutCastWarning(ModelMixin):
    """A model whose `to(dtype)` does not warn that the modules `[]` should be kept in float32.

    diffusers 0.42 makes a list of `_keep_in_fp32_modules` and warns unless that is None, which it never is, so that no
    value of the attribute helps (huggingface/diffusers#13872). Where modules are named it still warns.
    """

    def to(self, *args: Any, **kwargs: Any) -> "WithoutCastWarning":
        LOGGER.addFilter(_names_modules)
        try:
            return super().to(*args, **kwargs)
        finally:
            LOGGER.removeFilter(_names_modules)


def _names_modules(record: logging.LogRecord) -> bool:
    return "should be kept in float32: []" not in record.getMessage()

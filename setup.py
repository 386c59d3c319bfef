"""The recipes of configs/ are part of the wheel, as pipeline/configs; all else is stated in pyproject.toml."""

from setuptools import find_namespace_packages, find_packages, setup

RECIPES = ["pipeline.configs", *(f"pipeline.configs.{name}" for name in find_namespace_packages("configs"))]

setup(
    packages=[*find_packages(include=["pipeline*", "stages*"]), *RECIPES],
    package_dir={"pipeline.configs": "configs"},
    package_data={name: ["*.yaml"] for name in RECIPES},
)

"""Whether the rows of codes of a trained network can be made for the codes of a recipe's tokenizer."""

from pipeline.code import LatentSpec
from pipeline.components import Arguments, build, check, classes_of, kinds
from pipeline.files.writing import read_json
from pipeline.networks.base import Network
from pipeline.nn.image_size import sides_of
from pipeline.recipes.derived import DERIVED
from pipeline.recipes.generator_training import Start
from pipeline.recipes.schema import Recipe
from pipeline.recipes.started import find_old_tokenizer
from pipeline.transplants.base import Transplant
from pipeline.validation import SettingError, at

PLACE = "start.transplant"  # of the section generator


def check_transplant(start: Start | None, spec: LatentSpec, network: type[Network]) -> None:
    """SettingError where a transplant is stated, and there is no such way, or there are no rows of codes."""
    if start is None or start.transplant is None:
        return
    check("transplants", start.transplant, DERIVED["transplants"], PLACE)
    if not spec.vocab:
        raise SettingError(PLACE, " makes rows of ids, and these codes are continuous; leave it out")
    if not network.code_tables:
        raise SettingError(
            PLACE,
            f": a {network.__name__} has no row for each code; leave it out, and add"
            " generator.start.reinitialise=[codes]",
        )


def check_codes_before(recipe: Recipe, spec: LatentSpec) -> None:
    """ValueError where the codes that the network in the folder was trained on cannot be compared with the recipe's.

    The old tokenizer's config is read, and nothing is built.
    """
    start = recipe.generator.start
    if start.transplant is None or (way := build_transplant(start)).similarity is None:
        return
    with at("generator"):
        folder = find_old_tokenizer(start)
        if folder is None:
            raise SettingError(
                "start.tokenizer",
                f" is missing: no tokenizer lies beside the network in {start.folder}; give the folder of the one whose"
                f" codes it was trained on, or set transplant to one of {', '.join(ways_without_tokenizer())}",
            )
        config = read_json(folder / "config.json")
        classes = {cls.__name__: cls for cls in classes_of("tokenizers")}
        if (cls := classes.get(config.get("_class_name"))) is None:
            raise SettingError("start.tokenizer", f": {folder} holds a {config.get('_class_name')}, no tokenizer")
        arguments = Arguments.complete(cls, {n: value for n, value in config.items() if not n.startswith("_")})
        shape = arguments.get("image_channels", 3), *sides_of(arguments.image_size)
        if shape != recipe.data.image_shape:
            old, new = (
                f"{channels} channels of {height}x{width}"
                for channels, height, width in (shape, recipe.data.image_shape)
            )
            raise SettingError(
                PLACE,
                f" compares codes of the same pictures, and the old tokenizer reads {old}, not {new}; set kind=mean",
            )
        with at(PLACE):
            way.similarity.check(cls.geometry(arguments), spec)


def build_transplant(start: Start) -> Transplant:
    return build("transplants", start.transplant)


def ways_without_tokenizer() -> list[str]:
    """The ways of a transplant that compare no codes."""
    return [kind for kind in kinds("transplants") if build("transplants", {"kind": kind}).similarity is None]

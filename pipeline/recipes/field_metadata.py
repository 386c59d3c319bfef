"""What the fields of a recipe's records say of themselves beside their types."""

ONLY_SPEED = {"only_speed": True}  # a setting that changes how fast a result is computed, not the result


def slot(name: str) -> dict[str, str]:
    """The metadata of a field that names components of this slot, by which texts of a command line find their type."""
    return {"slot": name}

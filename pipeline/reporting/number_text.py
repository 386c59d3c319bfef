"""How a measured number is written for people, in reports, cards and tables alike."""


def format_number(number: float, unit: str = "") -> str:
    """Some four significant digits; shares in per cent."""
    if unit == "share":
        return f"{100 * number:.1f}\N{NO-BREAK SPACE}%"
    if unit == "×":
        return f"{number:.2f}\N{NO-BREAK SPACE}×"
    text = f"{number:.3g}" if 0 < abs(number) < 0.01 else f"{number:.3f}" if abs(number) < 10 else f"{number:.4g}"
    return f"{text}\N{NO-BREAK SPACE}{unit}".rstrip("\N{NO-BREAK SPACE}")

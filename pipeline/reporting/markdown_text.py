"""Text that others wrote, as text inside of Markdown: on one line, and nothing in it has a meaning of its own."""

import re
from html import escape
from typing import Any

SPACE = re.compile(r"[^\S\N{NO-BREAK SPACE}]+")
MARKS = re.compile(r"([\\`*\[\]|~])|(?<!\w)(_)|(_)(?!\w)")  # an underscore inside of a word has no meaning


def markdown_text(text: Any) -> str:
    """`text` as Markdown, in tables too, that shows it as it is."""
    line = SPACE.sub(" ", str(text)).strip()
    return MARKS.sub(lambda match: f"\\{match[0]}", escape(line, quote=False))

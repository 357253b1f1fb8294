"""Text of models and users in Markdown, and so in the HTML that it becomes: shown, never obeyed."""

import html
import json
import re


def markdown_text(text: str) -> str:
    """Text as part of a line of Markdown: no markup, link, HTML or table column comes of it."""
    line = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", line)


def markdown_code(text: str) -> str:
    """Text as code in a Markdown table, its spaces and line ends visible."""
    # What is between backticks is taken as it is, but for the bar that would end a column.
    line = json.dumps(text, ensure_ascii=False)[1:-1].replace("|", "\\|").replace("`", "\\u0060")
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    return f"`{line.replace(' ', '␣')}`"

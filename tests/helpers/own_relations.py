"""Relations of words that trained checkpoints know."""

import json
from pathlib import Path

from tests.helpers.trained_prompts import COPYING as TRAINED_COPYING

# Words that are single tokens of each trained checkpoint's small vocabulary.
COPYING = {
    "stories260K": ["Lily", "Tim", "mom", "day", "big", "friend", "happy"],
    "slm4096": ["b", "c", "d", "e", "t", "a", "s"],
    "gpt-nano-sort": ["A", "B", "C"],
    "trained-llama": TRAINED_COPYING,
}


def write_relations(name: str, directory: Path) -> str:
    """Copying over words of the model's own, and a relation that has too few pairs for it."""
    (directory / "copying.json").write_text(json.dumps([[word, word] for word in COPYING[name]]))
    (directory / "too_few.json").write_text(json.dumps([["unheard-of", "word"]]))
    return str(directory)

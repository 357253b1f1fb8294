"""The same random checkpoint as our model and as torch's, converted once however many tests want it."""

import functools
import tempfile
from pathlib import Path

import transformers

from headjax import load_model
from headjax.model import Transformer
from headjax.parameters.cache import ensure_converted
from tests.helpers import torch_oracle


@functools.cache
def twins(name: str) -> tuple[Transformer, transformers.PreTrainedModel]:
    """`torch_oracle.CONFIGS[name]` as ours and as theirs. Read only: everyone gets the same two."""
    with tempfile.TemporaryDirectory() as directory:
        theirs = torch_oracle.save_model(name, Path(directory) / "hf")
        return load_model(ensure_converted(Path(directory) / "hf", Path(directory) / "ours")), theirs

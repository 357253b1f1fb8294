"""The model zoo's one architecture: attention that returns every head's output, blocks, the transformer."""

from headjax.model.block import MLP, Block
from headjax.model.norm import Norm
from headjax.model.transformer import (
    Output,
    Transformer,
    abstract_model,
    build_model,
    fill,
    first_mlp,
    mask_positions,
    model_parameters,
    one_block,
    parameter_shapes,
)

__all__ = [
    "MLP",
    "Block",
    "Norm",
    "Output",
    "Transformer",
    "abstract_model",
    "build_model",
    "fill",
    "first_mlp",
    "mask_positions",
    "model_parameters",
    "one_block",
    "parameter_shapes",
]

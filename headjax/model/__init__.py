"""The model zoo's one architecture: attention that returns every head's output, blocks, the transformer."""

from headjax.model.block import MLP, Block
from headjax.model.norm import Norm
from headjax.model.transformer import (
    Output,
    Transformer,
    abstract_block,
    abstract_model,
    build_model,
    capped,
    fill,
    first_mlp,
    first_mlp_names,
    mask_positions,
    model_parameters,
    one_block,
    parameter_shapes,
    scaled_embedding,
    unit_W_O,
    write_names,
)

__all__ = [
    "MLP",
    "Block",
    "Norm",
    "Output",
    "Transformer",
    "abstract_block",
    "abstract_model",
    "build_model",
    "capped",
    "fill",
    "first_mlp",
    "first_mlp_names",
    "mask_positions",
    "model_parameters",
    "one_block",
    "parameter_shapes",
    "scaled_embedding",
    "unit_W_O",
    "write_names",
]

"""A run in miniature: a converted checkpoint of random weights, relations, a config of many small units."""

import json
from pathlib import Path

import numpy as np

from experiments.config import RunConfig
from headjax.analyses import AblationCurves, DynamicScores, HeadAblation, RelationScores
from headjax.config import ModelConfig, Rotary
from headjax.model import parameter_shapes
from headjax.parameters.converted import write_checkpoint
from headjax.study import Compute, Data
from tests.helpers import tiny_tokenizers

PAIRS = {
    "capitals": [("France", "Paris"), ("Italy", "Rome"), ("Spain", "Madrid"), ("Peru", "Lima")],
    "copying": [(name, name) for name in ("John", "Mary", "Anna", "Peter", "Mark", "Lucy", "dog")],
}


def tiny_config(vocab_size: int, n_heads: int = 3, n_kv_heads: int | None = None) -> ModelConfig:
    return ModelConfig(
        **{
            "family": "llama",
            "n_layers": 5,
            "n_heads": n_heads,
            "n_kv_heads": n_kv_heads or n_heads,
            "d_head": 4,
            "d_model": 13,
        },
        **{"d_mlp": 17, "vocab_size": vocab_size, "max_positions": 64, "norm": "rms", "norm_eps": 1e-5},
        **{"rotary": Rotary(4, 10000.0), "activation": "silu", "gated_mlp": True},
        **{"parallel_residual": False, "tied_embeddings": True},
    )


def write_model(
    directory: Path, vocab_size: int, seed: int = 0, n_heads: int = 3, n_kv_heads: int | None = None
) -> None:
    """A converted checkpoint without a tokenizer."""
    config = tiny_config(vocab_size, n_heads, n_kv_heads)
    rng = np.random.default_rng(seed)
    parameters = {
        name: rng.normal(size=shape).astype(np.float32) for name, shape in parameter_shapes(config).items()
    }
    write_checkpoint(
        directory,
        config,
        {name: array.dtype for name, array in parameters.items()},
        {"source": "tiny", "revision": None, "files": {"weights": {"sha256": str(seed)}}},
        lambda group: {
            name: parameters[name] if group.layer is None else parameters[name][group.layer]
            for name in group.names
        },
    )


def tiny_run(directory: Path, n_heads: int = 3, n_kv_heads: int | None = None) -> RunConfig:
    """The config of a run whose model and relations are written into the directory."""
    tokenizer = tiny_tokenizers.byte_level()
    write_model(directory / "model", len(tokenizer), n_heads=n_heads, n_kv_heads=n_kv_heads)
    tokenizer.save_pretrained(directory / "model")
    (directory / "relations").mkdir()
    for name, pairs in PAIRS.items():
        (directory / "relations" / f"{name}.json").write_text(json.dumps(pairs))
    return RunConfig(
        model=str(directory / "model"),
        analyses=(
            RelationScores(),
            DynamicScores(),
            HeadAblation(replacement="mean"),
            AblationCurves(replacement="mean", n_random_draws=2),
        ),
        data=Data(
            relations_dir=str(directory / "relations"),
            min_pairs=3,
            templates=("<X> is", "The story of <X>"),
            bos=False,
        ),
        compute=Compute(batch_size=4, variant_batch=3),
        out=str(directory / "out"),
    )

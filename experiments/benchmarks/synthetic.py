"""Made-up Llama checkpoints of any size, as sharded safetensors, for benchmarks that need no real weights."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np

ROWS = 8192  # of a tensor that are made at a time


def llama_config(
    *, layers: int, heads: int, kv_heads: int, d_head: int, d_model: int, d_mlp: int, vocabulary: int
) -> dict:
    """A config.json with Llama 3's other fields."""
    return {
        "model_type": "llama",
        "hidden_size": d_model,
        "intermediate_size": d_mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": d_head,
        "vocab_size": vocabulary,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }


def shards(config: dict) -> list[dict[str, tuple[int, ...]]]:
    """Name -> shape of every tensor: one shard for each layer, one before and one after them."""
    D, F, V = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    values = config["num_key_value_heads"] * config["head_dim"]
    layer = {
        "input_layernorm.weight": (D,),
        "self_attn.q_proj.weight": (queries, D),
        "self_attn.k_proj.weight": (values, D),
        "self_attn.v_proj.weight": (values, D),
        "self_attn.o_proj.weight": (D, queries),
        "post_attention_layernorm.weight": (D,),
        "mlp.gate_proj.weight": (F, D),
        "mlp.up_proj.weight": (F, D),
        "mlp.down_proj.weight": (D, F),
    }
    return [
        {"model.embed_tokens.weight": (V, D)},
        *(
            {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
            for i in range(config["num_hidden_layers"])
        ),
        {"model.norm.weight": (D,), "lm_head.weight": (V, D)},
    ]


def random_numbers(rng: np.random.Generator, shape: tuple[int, ...], deviation: float) -> np.ndarray:
    """bfloat16 numbers, evenly spread over 256 values: made about as fast as they are written."""
    whole = np.frombuffer(rng.bytes(math.prod(shape)), np.int8).reshape(shape)
    return (whole.astype(np.float32) * np.float32(deviation / 74)).astype(ml_dtypes.bfloat16)


def write_checkpoint(
    directory: Path, config: dict, is_filled: Callable[[str], bool] = lambda name: True, seed: int = 1
) -> dict[str, tuple[Path, int]]:
    """Writes it, and returns where each tensor begins: name -> file and byte.

    Tensors are random, with deviation ``shape[-1] ** -0.5``, norms near one. Those that are not filled are
    holes in the files, which cost no disk and read as zeros.
    """
    rng, places = np.random.default_rng(seed), {}
    (directory / "config.json").write_text(json.dumps(config), "utf-8")
    parts = shards(config)
    for i, shard in enumerate(parts):
        file = directory / f"model-{i + 1:05}-of-{len(parts):05}.safetensors"
        header, end = {}, 0
        for name, shape in shard.items():
            begin, end = end, end + 2 * math.prod(shape)
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": (begin, end)}
        text = json.dumps(header).encode()
        with open(file, "wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            data = stream.tell()
            for name, shape in shard.items():
                places[name] = file, data + header[name]["data_offsets"][0]
                if is_filled(name):
                    stream.seek(places[name][1])
                    _write_random(stream, rng, shape)
            stream.truncate(data + end)
    weight_map = {name: file.name for name, (file, _) in places.items()}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}), "utf-8")
    return places


def _write_random(stream, rng: np.random.Generator, shape: tuple[int, ...]) -> None:
    if len(shape) == 1:
        (1 + random_numbers(rng, shape, 0.1).astype(np.float32)).astype(ml_dtypes.bfloat16).tofile(stream)
        return
    for start in range(0, shape[0], ROWS):
        random_numbers(rng, (min(ROWS, shape[0] - start), *shape[1:]), shape[-1] ** -0.5).tofile(stream)


def write_rows(place: tuple[Path, int], ids: np.ndarray, rows: np.ndarray) -> None:
    """Overwrites rows of a tensor in its file."""
    file, begin = place
    with open(file, "r+b") as stream:
        for i, row in zip(ids.tolist(), rows, strict=True):
            stream.seek(begin + row.nbytes * i)
            row.tofile(stream)

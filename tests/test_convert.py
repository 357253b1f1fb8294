"""Conversion: the hub's files as they are, every bad input refused in one line, memory bounded."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from checkpoints_convert import convert
from checkpoints_convert.engine import BLOCK, Source, open_source
from checkpoints_convert.families import FAMILIES
from checkpoints_convert.fields import Fields
from checkpoints_convert.rules import split_layout, stored_shape
from headjax.config import Llama3Scaling, ModelConfig, Rotary
from headjax.engine.mesh import PARAMETER_AXES
from headjax.errors import InputError
from headjax.parameters.cache import ensure_converted
from headjax.parameters.converted import parameter_groups, read_config, read_parameters, read_provenance
from tests.helpers import torch_oracle
from tests.helpers.torch_or_skip import torch

ROOT = Path(__file__).resolve().parents[1]
NAMES = {
    "gpt2": "gpt2",
    "gpt_neox": "gpt_neox-parallel",
    "phi": "phi-gqa",
    "llama": "llama-gqa-llama3-rope",
    "mistral": "mistral-mqa-window",
    "qwen2": "qwen2-gqa-tied",
    "qwen3": "qwen3-gqa-head-dim-window",
    "gpt_neo": "gpt_neo-windows",
    "gptj": "gptj",
    "opt": "opt",
    "phi3": "phi3-gqa-window",
    "gemma": "gemma-mqa",
    "gemma2": "gemma2-gqa-caps-windows",
    "gemma3_text": "gemma3-mqa-windows",
    "gemma3": "gemma3-mqa-windows",
    "olmo2": "olmo2-gqa",
    "olmo3": "olmo3-mqa-windows",
}
Tensors = dict[str, np.ndarray]


# --- writing checkpoints of every kind ----------------------------------------------------------------


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A family's random checkpoint as transformers writes it, made once."""
    made: dict[str, Path] = {}

    def save(family: str) -> Path:
        if family not in made:
            directory = tmp_path_factory.mktemp(family)
            torch_oracle.save_model(NAMES[family], directory)
            if family == "gemma3":
                with_vision(directory)
            made[family] = directory
        return made[family]

    return save


def with_vision(directory: Path) -> None:
    """Makes a Gemma 3 that reads and writes text a part of one that sees, as its publisher stores it."""
    tensors = {f"language_model.{name}": array for name, array in load(directory).items()}
    tensors["vision_tower.vision_model.encoder.layers.7.mlp.fc1.weight"] = np.ones((3, 5), np.float32)
    tensors["multi_modal_projector.mm_input_projection_weight"] = np.ones((5, 3), np.float32)
    save(directory, tensors)
    text = json.loads((directory / "config.json").read_text())
    fields = {"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 3}}
    (directory / "config.json").write_text(
        json.dumps(fields | {"mm_tokens_per_image": 256, "boi_token_index": 7, "image_token_index": 8})
    )


@pytest.fixture
def copied(saved, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a family's checkpoint for a test to change."""

    def copy(family: str) -> Path:
        return Path(shutil.copytree(saved(family), tmp_path / family))

    return copy


def load(directory: Path) -> Tensors:
    return load_file(directory / "model.safetensors")


def save(directory: Path, *shards: Tensors) -> None:
    """Writes the weights anew: one file, or shards with an index."""
    (directory / "model.safetensors").unlink(missing_ok=True)
    if len(shards) == 1:
        save_file(shards[0], directory / "model.safetensors")
        return
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, directory / name)
    weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def edit_config(directory: Path, remove: tuple[str, ...] = (), **fields) -> None:
    file = directory / "config.json"
    values = {name: value for name, value in json.loads(file.read_text()).items() if name not in remove}
    file.write_text(json.dumps(values | fields))


def read_all(source: Source) -> Tensors:
    """Every parameter of every layer, named "007.blocks.ln1.scale"."""
    return {
        f"{group.path[-3:]}.{name}": array
        for group in parameter_groups(source.config)
        for name, array in source.read(group.names, group.layer).items()
    }


def assert_same(actual: Tensors, expected: Tensors, dtype=np.float32) -> None:
    assert set(actual) == set(expected)
    for name, array in expected.items():
        assert actual[name].dtype == dtype, name
        np.testing.assert_array_equal(actual[name], array.astype(dtype), err_msg=name)


# --- tables -------------------------------------------------------------------------------------------


def test_a_layout_names_the_axes_of_the_parameters_it_fills():
    for table in FAMILIES.values():
        for rule in table.rules:
            # Fused matrices give every query head its own key/value head: H where it is G elsewhere.
            letters = rule.layout.split(" -> ")[1].replace("3 ", "").replace("G", "H").split()
            assert len(rule.parameters) == 3 or "3" not in rule.layout
            parts = re.findall(r"[A-Z]", re.search(r"(\w\|[|\w]*|$)", rule.layout)[0])
            for i, parameter in enumerate(rule.parameters):
                own = [parts[i].replace("G", "H") if letter == "*" else letter for letter in letters]
                if "_norm" in parameter:  # of all heads together, or of each alone
                    assert own in (["K"], ["H", "K"])
                else:
                    axes = PARAMETER_AXES[parameter].replace("L ", "").replace("G", "H").split()
                    assert axes == own


@pytest.mark.parametrize(
    ("layout", "where"),
    [
        # Where, in the stored matrix, part p's entry [d, h, k] is; H, K, D = 3, 5, 7.
        ("D (3 H K) -> 3 D H K", lambda p, d, h, k: (d, (p * 3 + h) * 5 + k)),
        ("(H 3 K) D -> 3 D H K", lambda p, d, h, k: ((h * 3 + p) * 5 + k, d)),
    ],
)
def test_fused_layouts(layout: str, where: Callable):
    sizes = {"3": 3, "H": 3, "K": 5, "D": 7}
    stored = np.arange(315, dtype=np.float32).reshape(stored_shape(layout, sizes))
    parts = split_layout(stored, layout, sizes, 3)
    assert len(parts) == 3
    for p, part in enumerate(parts):
        assert part.shape == (7, 3, 5)
        for (d, h, k), value in np.ndenumerate(part):
            assert value == stored[where(p, d, h, k)]


def test_parts_of_different_sizes_and_rows_that_are_not_used():
    sizes = {"H": 3, "G": 2, "K": 5, "D": 7, "F": 4, "P": 6}
    stored = np.arange(35 * 7, dtype=np.float32).reshape(stored_shape("(H|G|G K) D -> D * K", sizes))
    parts = split_layout(stored, "(H|G|G K) D -> D * K", sizes, 3)
    assert [part.shape for part in parts] == [(7, 3, 5), (7, 2, 5), (7, 2, 5)]
    for part, first in zip(parts, (0, 15, 25), strict=True):
        for (d, h, k), value in np.ndenumerate(part):
            assert value == stored[first + h * 5 + k, d]
    stored = np.arange(8 * 7, dtype=np.float32).reshape(stored_shape("F|F D -> D *", sizes))
    for part, first in zip(split_layout(stored, "F|F D -> D *", sizes, 2), (0, 4), strict=True):
        np.testing.assert_array_equal(part, stored[first : first + 4].T)
    stored = np.arange(8 * 7, dtype=np.float32).reshape(stored_shape("2+P D -> P D", sizes))
    (rows,) = split_layout(stored, "2+P D -> P D", sizes, 1)
    np.testing.assert_array_equal(rows, stored[2:])


# --- the hub's files ----------------------------------------------------------------------------------


def test_gpt2_without_prefix_with_mask_buffers(saved, copied):
    expected, directory = read_all(open_source(saved("gpt2"))), copied("gpt2")
    tensors = {name.removeprefix("transformer."): array for name, array in load(directory).items()}
    assert "wte.weight" in tensors
    for layer in range(3):
        tensors[f"h.{layer}.attn.bias"] = np.tril(np.ones((1, 1, 37, 37), np.uint8))
        tensors[f"h.{layer}.attn.masked_bias"] = np.array(-1e4, np.float32)
    save(directory, tensors)
    actual = read_all(open_source(directory))
    assert_same(actual, expected)
    # The query bias is the one that a test of the name's end takes for a mask.
    assert np.abs(actual["000.blocks.attn.b_Q"]).min() > 0


def test_pythia_in_float16_with_buffers_and_old_names(saved, copied):
    expected, directory = read_all(open_source(saved("gpt_neox"))), copied("gpt_neox")
    tensors = {name: array.astype(np.float16) for name, array in load(directory).items()}
    head = next(name for name in ("lm_head.weight", "embed_out.weight") if name in tensors)
    tensors["embed_out.weight"] = tensors.pop(head)
    for layer in range(3):
        attention = f"gpt_neox.layers.{layer}.attention."
        tensors[attention + "bias"] = np.tril(np.ones((1, 1, 41, 41), bool))
        tensors[attention + "masked_bias"] = np.array(-np.inf, np.float16)
        tensors[attention + "rotary_emb.inv_freq"] = np.ones(2, np.float16)
    save(directory, tensors)
    edit_config(directory, ("rope_parameters",), rotary_pct=0.5, rotary_emb_base=900, torch_dtype="float16")
    source = open_source(directory)
    assert source.config == open_source(saved("gpt_neox")).config
    assert_same(read_all(source), expected, np.float16)


def test_llama_in_bfloat16_shards(saved, copied):
    expected, directory = read_all(open_source(saved("llama"))), copied("llama")
    tensors = {name: array.astype(ml_dtypes.bfloat16) for name, array in load(directory).items()}
    items = list(tensors.items())
    save(directory, dict(items[:5]), dict(items[5:19]), dict(items[19:]))
    rope = {key: value for key, value in torch_oracle.LLAMA3_ROPE.items() if key != "rope_theta"}
    edit_config(
        directory, ("rope_parameters", "dtype"), rope_theta=700.0, rope_scaling=rope, torch_dtype="bfloat16"
    )
    source = open_source(directory)
    assert source.config == open_source(saved("llama")).config
    assert_same(read_all(source), expected, ml_dtypes.bfloat16)


def test_base_model_of_a_tied_gpt2_and_a_repeated_head(saved, copied):
    expected, directory = read_all(open_source(saved("gpt2"))), copied("gpt2")
    tensors = load(directory)
    assert "lm_head.weight" not in tensors
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"]
    save(directory, tensors)
    assert_same(read_all(open_source(directory)), expected)
    tensors["lm_head.weight"] = tensors["lm_head.weight"] + np.eye(101, 42, dtype=np.float32)
    save(directory, tensors)
    with pytest.raises(
        InputError, match=r"model.safetensors: .* lm_head.weight must equal transformer.wte.w"
    ):
        open_source(directory)


def test_layers_of_mixed_dtypes_keep_every_bit(saved, copied):
    directory = copied("llama")
    tensors = load(directory)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].astype(ml_dtypes.bfloat16)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.float64)
    save(directory, tensors)
    source = open_source(directory)
    assert source.dtypes["blocks.mlp.W_in"] == source.dtypes["ln_final.scale"] == np.float32
    actual, expected = read_all(source), read_all(open_source(saved("llama")))
    assert_same({"a": actual.pop("001.blocks.mlp.W_in")}, {"a": tensors[name].T})
    assert_same(actual, {key: value for key, value in expected.items() if key in actual})


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_bin_files(saved, copied, legacy: bool):
    expected, directory = read_all(open_source(saved("phi"))), copied("phi")
    tensors = {name: torch.tensor(array) for name, array in load(directory).items()}
    (directory / "model.safetensors").unlink()
    items = list(tensors.items())
    shards = {"pytorch_model-00001-of-00002.bin": items[:9], "pytorch_model-00002-of-00002.bin": items[9:]}
    for name, part in shards.items():
        torch.save(dict(part), directory / name, _use_new_zipfile_serialization=not legacy)
    weight_map = {key: name for name, part in shards.items() for key, _ in part}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert_same(read_all(open_source(directory)), expected)


def test_bin_file_in_bfloat16(saved, copied):
    expected, directory = read_all(open_source(saved("llama"))), copied("llama")
    tensors = {name: torch.tensor(array).bfloat16() for name, array in load(directory).items()}
    (directory / "model.safetensors").unlink()
    torch.save(tensors, directory / "pytorch_model.bin")
    assert_same(read_all(open_source(directory)), expected, ml_dtypes.bfloat16)


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("owned",)


def test_bin_files_run_no_code_and_need_torch(copied, monkeypatch):
    directory = copied("gpt2")
    monkeypatch.chdir(directory)
    (directory / "model.safetensors").unlink()
    torch.save({"wte.weight": Malicious()}, directory / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model.bin: torch cannot load it as weights: "):
        open_source(directory)
    assert not (directory / "owned").exists()
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match=r"pytorch_model.bin: a .bin file needs torch"):
        open_source(directory)


# Configs as they lie on the hub (trimmed only of what the next test adds to every one).
HUB_CONFIGS = {
    "gpt2-medium": (
        """{"activation_function": "gelu_new", "attn_pdrop": 0.1, "embd_pdrop": 0.1,
        "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 1024,
        "n_head": 16, "n_layer": 24, "n_positions": 1024,
        "n_special": 0, "predict_special_tokens": true, "resid_pdrop": 0.1, "summary_activation": null,
        "summary_first_dropout": 0.1, "summary_proj_to_labels": true, "summary_type": "cls_index",
        "summary_use_proj": true, "task_specific_params": {"text-generation": {"do_sample": true}},
        "vocab_size": 50257}""",
        ModelConfig(
            "gpt2", 24, 16, 16, 64, 1024, 4096, 50257, 1024, "layer", 1e-5,
            None, "gelu_tanh", False, False, True,
        ),
    ),
    "pythia-12b": (
        """{"hidden_act": "gelu", "hidden_size": 5120, "intermediate_size": 20480, "layer_norm_eps": 1e-05,
        "max_position_embeddings": 2048, "model_type": "gpt_neox", "num_attention_heads": 40,
        "num_hidden_layers": 36, "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": false,
        "torch_dtype": "float16", "use_parallel_residual": true, "vocab_size": 50688}""",
        ModelConfig(
            "gpt_neox", 36, 40, 40, 128, 5120, 20480, 50688, 2048, "layer", 1e-5,
            Rotary(32, 10000.0), "gelu", False, True, False,
        ),
    ),
    "phi-2": (
        """{"attention_dropout": 0.0, "embd_pdrop": 0.0, "hidden_act": "gelu_new", "hidden_size": 2560,
        "intermediate_size": 10240, "layer_norm_eps": 1e-05, "max_position_embeddings": 2048,
        "model_type": "phi", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
        "partial_rotary_factor": 0.4, "qk_layernorm": false, "resid_pdrop": 0.1, "rope_scaling": null,
        "rope_theta": 10000.0, "tie_word_embeddings": false, "torch_dtype": "float16",
        "vocab_size": 51200}""",
        ModelConfig(
            "phi", 32, 32, 32, 80, 2560, 10240, 51200, 2048, "layer", 1e-5,
            Rotary(32, 10000.0), "gelu_tanh", False, True, False,
        ),
    ),
    "llama-3.1-70b": (
        """{"attention_bias": false, "attention_dropout": 0.0, "hidden_act": "silu", "hidden_size": 8192,
        "intermediate_size": 28672, "max_position_embeddings": 131072, "mlp_bias": false,
        "model_type": "llama", "num_attention_heads": 64, "num_hidden_layers": 80,
        "num_key_value_heads": 8, "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "rope_theta": 500000.0,
        "tie_word_embeddings": false, "torch_dtype": "bfloat16", "vocab_size": 128256}""",
        ModelConfig(
            "llama", 80, 64, 8, 128, 8192, 28672, 128256, 131072, "rms", 1e-5,
            Rotary(128, 500000.0, Llama3Scaling(8.0, 1.0, 4.0, 8192)), "silu", True, False, False,
        ),
    ),
    "llama-2-7b": (
        """{"hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 11008,
        "max_position_embeddings": 4096, "model_type": "llama", "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 32, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_scaling": null, "tie_word_embeddings": false, "torch_dtype": "float16", "vocab_size": 32000}""",
        ModelConfig(
            "llama", 32, 32, 32, 128, 4096, 11008, 32000, 4096, "rms", 1e-5,
            Rotary(128, 10000.0), "silu", True, False, False,
        ),
    ),
}  # fmt: skip
NEW_ROPE = {
    "pythia-12b": {"rope_type": "default", "rope_theta": 10000, "partial_rotary_factor": 0.25},
    "phi-2": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.4},
    "llama-3.1-70b": {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    },
}  # fmt: skip


def config_of(values: dict) -> ModelConfig:
    return FAMILIES[values["model_type"]].read_config(Fields(values, Path("config.json")))[0]


@pytest.mark.parametrize("name", HUB_CONFIGS)
def test_hub_configs_in_old_and_new_spelling(name: str):
    text, expected = HUB_CONFIGS[name]
    bookkeeping = {
        "architectures": ["X"], "bos_token_id": 1, "eos_token_id": [2, 3], "initializer_range": 0.02,
        "transformers_version": "4.40.0", "use_cache": True, "_name_or_path": "x", "auto_map": {"A": "x"},
    }  # fmt: skip
    old = json.loads(text) | bookkeeping
    assert config_of(old) == expected
    if name in NEW_ROPE:
        gone = {
            "rope_scaling",
            "rope_theta",
            "rotary_pct",
            "rotary_emb_base",
            "partial_rotary_factor",
            "torch_dtype",
        }
        new = {key: value for key, value in old.items() if key not in gone}
        assert config_of(new | {"rope_parameters": NEW_ROPE[name], "dtype": "float16"}) == expected


def test_what_transformers_writes_is_what_it_means(saved, family):
    """Against transformers' own reading of the file that it wrote."""
    theirs = torch_oracle.CONFIGS[NAMES[family]]
    ours = open_source(saved(family)).config
    assert (ours.n_layers, ours.n_heads, ours.d_model) == (
        theirs.num_hidden_layers, theirs.num_attention_heads, theirs.hidden_size,
    )  # fmt: skip
    assert (ours.vocab_size, ours.max_positions) == (theirs.vocab_size, theirs.max_position_embeddings)
    assert ours.tied_embeddings == theirs.tie_word_embeddings


# --- bad input ----------------------------------------------------------------------------------------


def with_tensors(change: Callable[[Tensors], object]) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        tensors = load(directory)
        change(tensors)
        save(directory, tensors)

    return apply


def doubled_in_two_shards(directory: Path) -> None:
    items = list(load(directory).items())
    save(directory, dict(items), {"transformer.h.1.ln_1.bias": dict(items)["transformer.h.1.ln_1.bias"]})


def index_outside(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory.parent / "model.safetensors")
    index = {"weight_map": {"transformer.wte.weight": "../model.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def index_of_missing_file(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors.index.json").write_text('{"weight_map": {"wte.weight": "a.safetensors"}}')


def truncated(directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])


def with_header(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        data = (directory / "model.safetensors").read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = change(data[8 : 8 + length])
        data = len(header).to_bytes(8, "little") + header + data[8 + length :]
        (directory / "model.safetensors").write_bytes(data)

    return apply


def doubled_in_the_header(header: bytes) -> bytes:
    values = json.loads(header)
    entry = json.dumps({"transformer.wpe.weight": values["transformer.wpe.weight"]})
    return header.rstrip()[:-1] + b"," + entry[1:].encode()


def written(name: str, text: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).write_text(text) and None


def config_fields(**fields) -> Callable[[Path], None]:
    return lambda directory: edit_config(directory, **fields)


def not_finite_at_the_end(directory: Path) -> None:
    """The last number of more than are looked at together."""
    tensors = load(directory)
    V, D = 2 * BLOCK // 42, 42
    tensors["transformer.wte.weight"] = np.zeros((V, D), np.float32)
    tensors["transformer.wte.weight"][-1, -1] = np.nan
    save(directory, tensors)
    edit_config(directory, vocab_size=V)


def several_faults(tensors: Tensors) -> None:
    for layer in (0, 2):
        del tensors[f"transformer.h.{layer}.ln_1.bias"]
    tensors["transformer.h.3.ln_1.bias"] = np.ones(42, np.float32)
    tensors["pooler.weight"] = np.ones((2, 3), np.float32)
    name = "transformer.h.1.attn.c_attn.weight"
    tensors[name] = np.ascontiguousarray(tensors[name].T)
    tensors["wpe.weight"] = tensors["transformer.wpe.weight"]
    tensors["transformer.ln_f.bias"] = tensors["transformer.ln_f.bias"].astype(np.int32)


EVERY_FAULT = "; ".join(
    (
        "x transformer.wpe.weight is given more than once: transformer.wpe.weight in model.safetensors, "
        "wpe.weight in model.safetensors",
        "- transformer.h.*.ln_1.bias [42] is missing (layer 0, 2)",
        "~ transformer.h.*.attn.c_attn.weight in model.safetensors must be [42, 126], is [126, 42] (layer 1)",
        "~ transformer.ln_f.bias in model.safetensors must be a float, is I32",
        "+ pooler.weight in model.safetensors [2, 3] belongs nowhere",
        "+ transformer.h.*.ln_1.bias in model.safetensors [42] belongs nowhere (layer 3)",
    )
)
# What is done to a good GPT-2 checkpoint -> what the message must contain.
BAD_INPUTS = {
    "faulty tensors": (with_tensors(several_faults), f"of a gpt2 model of 3 layers: {EVERY_FAULT}"),
    "doubled in shards": (
        doubled_in_two_shards,
        "x transformer.h.*.ln_1.bias is given more than once: transformer.h.*.ln_1.bias in "
        "model-00001-of-00002.safetensors, transformer.h.*.ln_1.bias in model-00002-of-00002.safetensors "
        "(layer 1)",
    ),
    "doubled in header": (
        with_header(doubled_in_the_header),
        "an object names each field once; twice: 'transformer.wpe.weight'",
    ),
    "index outside": (index_outside, "may name only files beside it; got '../model.safetensors'"),
    "index of a missing file": (index_of_missing_file, "index.json: names 'a.safetensors', which is missing"),
    "truncated": (truncated, "model.safetensors: truncated or corrupt: "),
    "empty file": (written("model.safetensors", ""), "model.safetensors: truncated or corrupt: "),
    "no JSON": (
        with_header(lambda header: header[:-9] + b"*" * 9),
        "model.safetensors: truncated or corrupt: ",
    ),
    "wrong size": (
        with_header(lambda header: header.replace(b"[37,42]", b"[37,41]")),
        "model.safetensors: truncated or corrupt: ",
    ),
    "not finite": (
        with_tensors(lambda t: t["transformer.h.1.mlp.c_fc.bias"].__setitem__(3, np.nan)),
        "model.safetensors: weights must be finite; transformer.h.1.mlp.c_fc.bias holds NaN or infinity",
    ),
    "not finite at the end": (not_finite_at_the_end, "transformer.wte.weight holds NaN or infinity"),
    "more layers than tensors": (
        config_fields(n_layer=2_000_000_000),
        "n_layer must be a positive integer of at most 10,000; got 2000000000",
    ),
    "more than can be counted": (
        config_fields(n_inner=10**100),
        "config.json: n_inner must be a positive integer of at most 2,147,483,647; got 1000000",
    ),
    "model_type is no text": (config_fields(model_type=["gpt2"]), "model_type must be one of gpt2, "),
    "unknown model_type": (
        config_fields(model_type="bert"),
        "config.json: model_type must be one of gpt2, gpt_neo, gptj, gpt_neox, opt, phi, phi3, llama, "
        "mistral, qwen2, qwen3, gemma, gemma2, gemma3_text, gemma3, olmo2, olmo3; got 'bert'",
    ),
    "latent attention": (
        config_fields(model_type="deepseek_v3"),
        "got 'deepseek_v3': its heads share one compressed key and value (multi-head latent attention)",
    ),
    "an encoder and a decoder": (config_fields(model_type="t5"), "got 't5': an encoder and a decoder; here"),
    "an encoder": (config_fields(model_type="roberta"), "got 'roberta': an encoder, which does not predict"),
    "no heads": (config_fields(model_type="mamba2"), "got 'mamba2': it has no attention heads"),
    "experts": (config_fields(model_type="qwen3_moe"), "got 'qwen3_moe': a mixture of experts, which is not"),
    "unknown field": (
        config_fields(alibi=True, window=None, depth_scale=0.5),
        "config.json: a field that is not understood may change the model; ignore_fields=alibi,depth_scale "
        "treats it as absent; got alibi=True (False is understood), depth_scale=0.5",
    ),
    "unused feature": (
        config_fields(scale_attn_weights=False),
        "ignore_fields=scale_attn_weights treats it as absent; got scale_attn_weights=False (True is und",
    ),
    "unknown activation": (
        config_fields(activation_function="quick_gelu"),
        "config.json: activation_function must be one of gelu, gelu_python, ",
    ),
    "mistyped field": (
        config_fields(n_layer="3"),
        "config.json: n_layer must be a positive integer of at most 10,000; got '3'",
    ),
    "indivisible": (config_fields(n_head=5), "config.json: n_embd must be a multiple of n_head, 5; got 42"),
    "config is no JSON": (written("config.json", "{"), "config.json: not valid JSON"),
    "no weights": (
        lambda directory: (directory / "model.safetensors").unlink(),
        "holds one of model.safetensors, ",
    ),
    "no config": (
        lambda directory: (directory / "config.json").unlink(),
        "holds config.json; this one does not",
    ),
}


@pytest.mark.parametrize("fault", BAD_INPUTS)
def test_bad_input_is_refused_and_leaves_nothing(fault: str, copied, tmp_path: Path):
    directory = copied("gpt2")
    spoil, message = BAD_INPUTS[fault]
    spoil(directory)
    out = tmp_path / "results" / "out"
    with pytest.raises(InputError) as caught:
        convert(directory, out)
    assert message in str(caught.value)
    assert str(directory) in str(caught.value)
    assert not out.parent.exists() or not list(out.parent.iterdir())


# (family, fields of config.json) -> what the message must contain.
MISFITS = [
    ("phi", {"qk_layernorm": True}, "got qk_layernorm=True (False is understood)"),
    (
        "phi",
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_parameters": None},
        "rope_scaling.rope_type must be one of default, linear, llama3, longrope, yarn; got 'dynamic'",
    ),
    (
        "gpt_neox",
        {"rotary_pct": 0.3},
        "rope_parameters.partial_rotary_factor must agree with the field outside, 0.3; got 0.5",
    ),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor must be 1 for a llama model; got 0.5"),
    (
        "llama",
        {"num_key_value_heads": 4},
        "num_key_value_heads must divide num_attention_heads, 6; got 4",
    ),
    (
        "llama",
        {"attention_bias": True},
        "- model.layers.*.self_attn.q_proj.bias [48] is missing (layer 0, 1, 2)",
    ),
    (
        "llama",
        {"vocab_size": 113},
        "~ model.embed_tokens.weight in model.safetensors must be [113, 48], is [109, 48]",
    ),
]


@pytest.mark.parametrize(("family", "fields", "message"), MISFITS)
def test_config_that_does_not_fit(family: str, fields: dict, message: str, copied):
    directory = copied(family)
    edit_config(directory, **fields)
    with pytest.raises(InputError) as caught:
        open_source(directory)
    assert message in str(caught.value)


def test_numbers_beyond_the_asked_dtype(copied, tmp_path: Path):
    directory = copied("gpt2")
    tensors = load(directory)
    tensors["transformer.wpe.weight"][2, 3] = 1e6
    save(directory, tensors)
    with pytest.raises(InputError, match=r"transformer.wpe.weight holds numbers beyond the range of float16"):
        convert(directory, tmp_path / "out", dtype="float16")
    convert(directory, tmp_path / "out", dtype="bfloat16")
    assert read_parameters(tmp_path / "out", ["embed.W_pos"])["embed.W_pos"].dtype == jnp.bfloat16
    with pytest.raises(InputError, match="dtype must be one of float32, bfloat16, float16; got 'int8'"):
        convert(directory, tmp_path / "out", dtype="int8")


# --- the written directory ----------------------------------------------------------------------------


def run_cli(*arguments: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "checkpoints_convert", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, **options)


def test_command_line(saved, copied, tmp_path: Path):
    source, out = copied("llama"), tmp_path / "out"
    (source / "tokenizer.json").write_text("{}")
    done = run_cli(f"--model={source}", f"--out={out}", "--dtype=bfloat16")
    assert (done.returncode, done.stderr) == (0, "")
    assert (out / "tokenizer.json").read_text() == "{}"
    provenance = read_provenance(out)
    assert provenance["source"] == str(source)
    assert set(provenance["files"]) == {"config.json", "model.safetensors", "tokenizer.json"}
    (source / "config.json").write_text("{}")
    failed = run_cli(f"--model={source}", f"--out={out}")
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: ")
    assert failed.stderr.count("\n") == 1
    assert "model_type must be one of" in failed.stderr
    unknown = run_cli("--modell=x")
    assert unknown.returncode == 2
    assert unknown.stderr.count("\n") == 1
    assert "modell" in unknown.stderr
    assert read_config(out) == open_source(saved("llama")).config


def test_written_parameters_are_the_files(saved, tmp_path: Path, family: str):
    source = open_source(saved(family))
    convert(saved(family), tmp_path / "out")
    parameters = read_parameters(tmp_path / "out")
    assert read_config(tmp_path / "out") == source.config
    for group in parameter_groups(source.config):
        for name, expected in source.read(group.names, group.layer).items():
            actual = parameters[name] if group.layer is None else parameters[name][group.layer]
            np.testing.assert_array_equal(actual, expected, err_msg=name)


@pytest.mark.parametrize("name", ["stories260K", "slm4096", "gpt-nano-sort"])
def test_trained_checkpoints_convert(name: str, shared_data: Path, tmp_path: Path):
    source = shared_data / "checkpoints" / name
    out = ensure_converted(source, tmp_path)
    config = read_config(out)
    tensors = load(source)
    embedding = next(
        array for key, array in tensors.items() if key.endswith(("wte.weight", "embed_tokens.weight"))
    )
    np.testing.assert_array_equal(read_parameters(out, ["embed.W_E"])["embed.W_E"], embedding)
    assert embedding.shape == (config.vocab_size, config.d_model)
    assert {"tokenizer.json", "tokenizer_config.json"} <= {file.name for file in out.iterdir()}


def test_unwritable_out(saved, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file/out: cannot be written: "):
        convert(saved("gpt2"), tmp_path / "file" / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    with pytest.raises(
        InputError, match="mine: only a converted checkpoint is replaced; this is something else"
    ):
        convert(saved("gpt2"), tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years"


FULL_DISK = """
import resource, sys
from checkpoints_convert.convert import convert
from headjax.errors import InputError
source, out = sys.argv[1:]
convert(source, out)
# A file may not grow past this, as on a full disk: writing gives an error, not a signal.
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    convert(source, out, dtype="bfloat16")
except InputError as error:
    print(error)
"""


def test_full_disk_leaves_the_old_checkpoint(saved, tmp_path: Path):
    out = tmp_path / "results" / "out"
    command = [sys.executable, "-c", FULL_DISK, str(saved("gpt2")), str(out)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert f"{out}: cannot be written: " in result.stdout, result.stderr[-2000:]
    assert [file.name for file in out.parent.iterdir()] == ["out"]
    assert read_parameters(out)["embed.W_E"].dtype == jnp.float32


MEMORY = """
import resource, sys
import jax
from checkpoints_convert.convert import convert
from checkpoints_convert.engine import open_source
from headjax.parameters.converted import read_parameters
warm, big, out = sys.argv[1:]
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
convert(warm, out)
jax.block_until_ready(read_parameters(out))
start = peak()
convert(big, out)
converted = peak()
size = sum(array.nbytes for array in jax.block_until_ready(read_parameters(out)).values())
print(converted - start, peak() - start, size)
"""


def test_memory_is_a_layer_when_converting_and_the_model_when_reading(saved, copied, tmp_path: Path):
    """Measured in a process of its own: 32 layers of 4 MiB."""
    directory = copied("llama")
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 32, "num_attention_heads": 8}
    edit_config(directory, **sizes, num_key_value_heads=8, vocab_size=1031, head_dim=32)
    shapes = {
        **dict.fromkeys((f"self_attn.{x}_proj.weight" for x in "qkvo"), (256, 256)),
        **dict.fromkeys(("mlp.gate_proj.weight", "mlp.up_proj.weight"), (1024, 256)),
        "mlp.down_proj.weight": (256, 1024),
        **dict.fromkeys(("input_layernorm.weight", "post_attention_layernorm.weight"), (256,)),
    }
    tensors = {
        **dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), np.ones((1031, 256), np.float32)),
        "model.norm.weight": np.ones(256, np.float32),
        **{
            f"model.layers.{layer}.{name}": np.full(shape, layer, np.float32)
            for layer in range(32)
            for name, shape in shapes.items()
        },
    }
    save(directory, tensors)
    command = [sys.executable, "-c", MEMORY, str(saved("llama")), str(directory), str(tmp_path / "out")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]
    converting, reading, size = map(int, result.stdout.split())
    assert size > 128 << 20
    # A layer as read, once more while it is laid out, and the same in the buffers that are written.
    assert converting < 24 << 20, converting
    assert reading < size + (48 << 20), reading


def test_devices_are_left_alone(saved, tmp_path: Path):
    """Conversion puts no array on a device: it must run beside a job that owns them."""
    before = {id(array) for array in jax.live_arrays()}
    convert(saved("gpt2"), tmp_path / "out")
    assert {id(array) for array in jax.live_arrays()} <= before

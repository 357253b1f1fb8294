"""What config.json of published models says, as far as it tells them apart: facts from the files on the Hub.

For plans and tests of models that are not on this machine; a model that is here is read from its own files.
"""

import re
from typing import Any

_GPT2 = ("n_embd", "n_layer", "n_head")
_NEOX = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
_OPT = ("hidden_size", "num_hidden_layers", "num_attention_heads", "ffn_dim")
_NEO = ("hidden_size", "num_layers", "num_heads")
_LLAMA = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size"),
    "vocab_size",
)
TIED, UNTIED, WIDE = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}, {"head_dim": 128}
LLAMA_3 = {**UNTIED, "rope_theta": 500_000.0, "max_position_embeddings": 8192}
LLAMA_3_1 = LLAMA_3 | {
    "max_position_embeddings": 131_072,
    "rope_scaling": {
        **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        "original_max_position_embeddings": 8192,
    },
}
LLAMA_3_2 = LLAMA_3_1 | TIED | {"rope_scaling": LLAMA_3_1["rope_scaling"] | {"factor": 32.0}}
GEMMA_3 = {"max_position_embeddings": 131_072, "sliding_window": 1024}
GEMMA_3_LARGE = GEMMA_3 | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}

# model_type, names of fields, other fields of all, then alias -> (what these fields say, other fields of its
# own).
_TABLES: tuple[tuple[str, tuple[str, ...], dict[str, Any], dict[str, tuple[tuple, dict[str, Any]]]], ...] = (
    (
        "gpt2",
        _GPT2,
        {"vocab_size": 50_257, "torch_dtype": "float32"},
        {
            "gpt2": ((768, 12, 12), {}),
            "gpt2-medium": ((1024, 24, 16), {}),
            "gpt2-large": ((1280, 36, 20), {}),
            "gpt2-xl": ((1600, 48, 25), {}),
            "distilgpt2": ((768, 6, 12), {}),
        },
    ),
    (
        "gpt_neox",
        _NEOX,
        {"rotary_pct": 0.25, "torch_dtype": "float16"},
        {
            "pythia-14m": ((128, 6, 4, 512, 50_304), {}),
            "pythia-70m": ((512, 6, 8, 2048, 50_304), {}),
            "pythia-160m": ((768, 12, 12, 3072, 50_304), {}),
            "pythia-410m": ((1024, 24, 16, 4096, 50_304), {}),
            "pythia-1b": ((2048, 16, 8, 8192, 50_304), {}),
            "pythia-1.4b": ((2048, 24, 16, 8192, 50_304), {}),
            "pythia-2.8b": ((2560, 32, 32, 10_240, 50_304), {}),
            "pythia-6.9b": ((4096, 32, 32, 16_384, 50_432), {}),
            "pythia-12b": ((5120, 36, 40, 20_480, 50_688), {}),
        },
    ),
    ("phi", _NEOX, {"partial_rotary_factor": 0.4}, {"phi-2": ((2560, 32, 32, 10_240, 51_200), {})}),
    ("phi3", _LLAMA, {"sliding_window": 2047}, {"phi-3-mini-4k": ((3072, 32, 32, 32, 8192, 32_064), {})}),
    (
        "llama",
        _LLAMA,
        {},
        {
            "llama-2-7b": ((4096, 32, 32, 32, 11_008, 32_000), {}),
            "llama-2-13b": ((5120, 40, 40, 40, 13_824, 32_000), {}),
            "llama-2-70b": ((8192, 80, 64, 8, 28_672, 32_000), {}),
            "llama-3-8b": ((4096, 32, 32, 8, 14_336, 128_256), LLAMA_3),
            "llama-3-70b": ((8192, 80, 64, 8, 28_672, 128_256), LLAMA_3),
            "llama-3.1-8b": ((4096, 32, 32, 8, 14_336, 128_256), LLAMA_3_1),
            "llama-3.1-70b": ((8192, 80, 64, 8, 28_672, 128_256), LLAMA_3_1),
            "llama-3.2-1b": ((2048, 16, 32, 8, 8192, 128_256), LLAMA_3_2 | {"head_dim": 64}),
            "llama-3.2-3b": ((3072, 28, 24, 8, 8192, 128_256), LLAMA_3_2 | WIDE),
            "llama-3.3-70b": ((8192, 80, 64, 8, 28_672, 128_256), LLAMA_3_1),
            "r1-distill-llama-8b": ((4096, 32, 32, 8, 14_336, 128_256), LLAMA_3_1),
            "r1-distill-llama-70b": ((8192, 80, 64, 8, 28_672, 128_256), LLAMA_3_1),
            "tinyllama-1.1b": ((2048, 22, 32, 4, 5632, 32_000), {}),
            "smollm2-135m": ((576, 30, 9, 3, 1536, 49_152), TIED),
            "smollm2-360m": ((960, 32, 15, 5, 2560, 49_152), TIED),
            "smollm2-1.7b": ((2048, 24, 32, 32, 8192, 49_152), TIED),
        },
    ),
    (
        "qwen2",
        _LLAMA,
        {"rope_theta": 1e6, "use_sliding_window": False},
        {
            "qwen2-0.5b": ((896, 24, 14, 2, 4864, 151_936), TIED),
            "qwen2-1.5b": ((1536, 28, 12, 2, 8960, 151_936), TIED),
            "qwen2-7b": ((3584, 28, 28, 4, 18_944, 152_064), UNTIED),
            "qwen2-72b": ((8192, 80, 64, 8, 29_568, 152_064), UNTIED),
            "qwen2.5-0.5b": ((896, 24, 14, 2, 4864, 151_936), TIED),
            "qwen2.5-1.5b": ((1536, 28, 12, 2, 8960, 151_936), TIED),
            "qwen2.5-3b": ((2048, 36, 16, 2, 11_008, 151_936), TIED),
            "qwen2.5-7b": ((3584, 28, 28, 4, 18_944, 152_064), UNTIED),
            "qwen2.5-14b": ((5120, 48, 40, 8, 13_824, 152_064), UNTIED),
            "qwen2.5-32b": ((5120, 64, 40, 8, 27_648, 152_064), UNTIED),
            "qwen2.5-72b": ((8192, 80, 64, 8, 29_568, 152_064), UNTIED),
            "r1-distill-qwen-1.5b": ((1536, 28, 12, 2, 8960, 151_936), UNTIED),
            "r1-distill-qwen-7b": ((3584, 28, 28, 4, 18_944, 152_064), UNTIED),
            "r1-distill-qwen-14b": ((5120, 48, 40, 8, 13_824, 152_064), UNTIED),
            "r1-distill-qwen-32b": ((5120, 64, 40, 8, 27_648, 152_064), UNTIED),
        },
    ),
    (
        "qwen3",
        _LLAMA,
        {"rope_theta": 1e6, **WIDE},
        {
            "qwen3-0.6b": ((1024, 28, 16, 8, 3072, 151_936), TIED),
            "qwen3-1.7b": ((2048, 28, 16, 8, 6144, 151_936), TIED),
            "qwen3-4b": ((2560, 36, 32, 8, 9728, 151_936), TIED),
            "qwen3-8b": ((4096, 36, 32, 8, 12_288, 151_936), UNTIED),
            "qwen3-14b": ((5120, 40, 40, 8, 17_408, 151_936), UNTIED),
            "qwen3-32b": ((5120, 64, 64, 8, 25_600, 151_936), UNTIED),
        },
    ),
    (
        "mistral",
        _LLAMA,
        {"sliding_window": None},
        {
            "mistral-7b-v0.1": ((4096, 32, 32, 8, 14_336, 32_000), {"sliding_window": 4096}),
            "mistral-7b-v0.2": ((4096, 32, 32, 8, 14_336, 32_000), {"rope_theta": 1e6}),
            "mistral-7b-v0.3": ((4096, 32, 32, 8, 14_336, 32_768), {"rope_theta": 1e6}),
            "mistral-nemo": ((5120, 40, 32, 8, 14_336, 131_072), WIDE | {"rope_theta": 1e6}),
            "mistral-small": ((5120, 40, 32, 8, 32_768, 131_072), WIDE | {"rope_theta": 1e8}),
        },
    ),
    (
        "gemma",
        _LLAMA,
        {},
        {
            "gemma-2b": ((2048, 18, 8, 1, 16_384, 256_000), {}),
            "gemma-7b": ((3072, 28, 16, 16, 24_576, 256_000), {}),
        },
    ),
    (
        "gemma2",
        _LLAMA,
        {},
        {
            "gemma-2-2b": ((2304, 26, 8, 4, 9216, 256_000), {"query_pre_attn_scalar": 256}),
            "gemma-2-9b": ((3584, 42, 16, 8, 14_336, 256_000), {"query_pre_attn_scalar": 256}),
            "gemma-2-27b": ((4608, 46, 32, 16, 36_864, 256_000), WIDE | {"query_pre_attn_scalar": 144}),
        },
    ),
    (
        "gemma3_text",
        _LLAMA,
        {},
        {
            "gemma-3-270m": ((640, 18, 4, 1, 2048, 262_144), {"sliding_window": 512}),
            "gemma-3-1b": ((1152, 26, 4, 1, 6912, 262_144), {"sliding_window": 512}),
            "gemma-3-4b": ((2560, 34, 8, 4, 10_240, 262_208), GEMMA_3_LARGE),
            "gemma-3-12b": ((3840, 48, 16, 8, 15_360, 262_208), GEMMA_3_LARGE),
            "gemma-3-27b": (
                (5376, 62, 32, 16, 21_504, 262_208), GEMMA_3_LARGE | WIDE | {"query_pre_attn_scalar": 168}
            ),
        },
    ),
    (
        "olmo2",
        _LLAMA,
        {"rope_theta": 500_000.0, "rms_norm_eps": 1e-6, "max_position_embeddings": 4096},
        {
            "olmo-2-1b": ((2048, 16, 16, 16, 8192, 100_352), {}),
            "olmo-2-7b": ((4096, 32, 32, 32, 11_008, 100_352), {}),
            "olmo-2-13b": ((5120, 40, 40, 40, 13_824, 100_352), {}),
            "olmo-2-32b": ((5120, 64, 40, 8, 27_648, 100_352), {}),
        },
    ),
    (
        "olmo3",
        _LLAMA,
        {"rms_norm_eps": 1e-6, "max_position_embeddings": 65_536},
        {
            "olmo-3-7b": ((4096, 32, 32, 32, 11_008, 100_278), {}),
            "olmo-3-32b": ((5120, 64, 40, 8, 27_648, 100_278), {}),
        },
    ),
    (
        "gptj",
        _GPT2,
        {"vocab_size": 50_400, "rotary_dim": 64, "torch_dtype": "float32"},
        {"gpt-j-6b": ((4096, 28, 16), {})},
    ),
    (
        "gpt_neo",
        _NEO,
        {"vocab_size": 50_257, "torch_dtype": "float32"},
        {
            "gpt-neo-125m": ((768, 12, 12), {"attention_types": [[["global", "local"], 6]]}),
            "gpt-neo-1.3b": ((2048, 24, 16), {}),
            "gpt-neo-2.7b": ((2560, 32, 20), {"attention_types": [[["global", "local"], 16]]}),
        },
    ),
    (
        "opt",
        _OPT,
        {"vocab_size": 50_272, "torch_dtype": "float16"},
        {
            "opt-125m": ((768, 12, 12, 3072), {}),
            "opt-1.3b": ((2048, 24, 32, 8192), {}),
            "opt-2.7b": ((2560, 32, 32, 10_240), {}),
            "opt-6.7b": ((4096, 32, 32, 16_384), {}),
            "opt-13b": ((5120, 40, 40, 20_480), {}),
            "opt-30b": ((7168, 48, 56, 28_672), {}),
        },
    ),
)  # fmt: skip
PUBLISHED: dict[str, dict[str, Any]] = {
    alias: {
        "model_type": model_type,
        "torch_dtype": "bfloat16",
        **of_all,
        **dict(zip(names, sizes, strict=True)),
        **own,
    }
    for model_type, names, of_all, models in _TABLES
    for alias, (sizes, own) in models.items()
}
# What models are called that were trained further from one of these.
_FURTHER = re.compile(r"-(instruct|it|chat|base|deduped)(?=-v|$)")


def published_config(alias: str) -> dict[str, Any] | None:
    """The fields of an alias' config.json that differ from model to model; None where they are not known."""
    return PUBLISHED.get(_FURTHER.sub("", alias.lower()))

"""ModelConfig: the only place where a model's sizes and switches are named."""

import dataclasses
import json
from typing import Literal

from headjax.errors import InputError
from headjax.io import json_object, parse_json


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """Positions divided by `factor` (`rope_type: linear`; Chen et al. 2023, "position interpolation")."""

    factor: float
    kind: Literal["linear"] = "linear"


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """Frequency scaling of Llama 3.1's rotary embedding (`rope_type: llama3`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int
    kind: Literal["llama3"] = "llama3"


@dataclasses.dataclass(frozen=True)
class YarnScaling:
    """Frequency scaling of YaRN (`rope_type: yarn`; Peng et al. 2023).

    Pairs that turn more than `beta_fast` times within `original_max_positions` keep their frequency, those
    that turn less than `beta_slow` times are divided by `factor`, the range between is interpolated;
    `truncate` widens that range to whole pairs. The rotated entries are multiplied by `attention_factor`.
    """

    factor: float
    beta_fast: float
    beta_slow: float
    original_max_positions: int
    attention_factor: float
    truncate: bool
    kind: Literal["yarn"] = "yarn"


Scaling = LinearScaling | Llama3Scaling | YarnScaling
_SCALINGS = {kind.kind: kind for kind in (LinearScaling, Llama3Scaling, YarnScaling)}


@dataclasses.dataclass(frozen=True)
class Rotary:
    """Rotary position embedding on the first `dim` entries of every query and key (Su et al. 2021)."""

    dim: int
    theta: float
    scaling: Scaling | None = None


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes and switches of one decoder-only transformer.

    The switches are `norm`, `rotary` (None: learned positions), the MLP's `activation` and `gated_mlp`,
    `parallel_residual`; `scores_by_layer`: the attention scores of layer l are divided by l + 1
    (`scale_attn_by_inverse_layer_idx` of some GPT-2 models); `qk_norm`: queries and keys are normed, each
    head's alone, before they are rotated (Qwen3); `window`: a position sees so many, itself the last of them
    (Mistral 7B v0.1; None: all before it). A bias that a family lacks is a parameter
    holding zeros, and a norm shared by attention and MLP is held twice, so neither needs a switch.

    `precision` is the matmul precision of every product ("highest": float32 means float32 on every
    device) and `implementation` names the kernels that run (`kernels/<op>/api.py`; None: each op's
    default). Both are settings of the computation, not of the checkpoint.
    """

    family: Literal["gpt2", "gpt_neox", "phi", "llama", "qwen2", "qwen3", "mistral"]
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_model: int
    d_mlp: int
    vocab_size: int
    max_positions: int
    norm: Literal["layer", "rms"]
    norm_eps: float
    rotary: Rotary | None
    activation: Literal["gelu", "gelu_tanh", "relu", "silu"]
    gated_mlp: bool
    parallel_residual: bool
    tied_embeddings: bool
    precision: str = "highest"
    implementation: str | None = None
    scores_by_layer: bool = False
    qk_norm: bool = False
    window: int | None = None

    def to_json(self) -> str:
        """The config as JSON text; `from_json` reads it back."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "ModelConfig":
        """Reads what `to_json` wrote. Raises InputError for anything else."""
        fields = json_object(parse_json(text, "a model's configuration"), "a model's configuration")
        try:
            if fields["rotary"] is not None:
                scaling = fields["rotary"].pop("scaling")
                if scaling is not None:
                    scaling = _SCALINGS[scaling.get("kind", "llama3")](**scaling)  # once the only kind
                fields["rotary"] = Rotary(**fields["rotary"], scaling=scaling)
            return cls(**fields)
        except (AttributeError, KeyError, TypeError) as error:
            raise InputError(f"a model's configuration has the fields that were written; {error}") from error

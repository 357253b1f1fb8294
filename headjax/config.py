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

    Attributes:
      norm, norm_eps: what all norms are: layer norms, or root-mean-square norms.
      norms: where they stand: "before" attention and MLP, "after" them (OLMo 2), or "around" them (Gemma 2).
        What is normed after is what attention, or the MLP, adds to the residual stream.
      qk_norm: queries and keys are normed before they are rotated: those of each "head" alone (Qwen3), or of
        all heads "joint" (OLMo 2).
      rotary: rotary position embedding; None: learned positions.
      rotary_in_window: another one of the layers that see a window (Gemma 3); None: the same.
      window: a position sees so many, itself the last of them (Mistral 7B v0.1); a tuple has a window, or
        None, for every layer. None: all before it.
      score_scale: what products of queries and keys are multiplied by; None: d_head ** -0.5.
      scores_by_layer: and those of layer l divided by l + 1 (`scale_attn_by_inverse_layer_idx` of GPT-2).
      soft_cap, logit_cap: no attention score, no logit exceeds it: ``cap * tanh(. / cap)`` (Gemma 2).
      embedding_scale: token embeddings are multiplied by it (Gemma: the square root of d_model).
      activation, gated_mlp: of the MLP.
      parallel_residual: attention and MLP read the same residual.
      precision: of every matrix product ("highest": float32 means float32 on every device).
      implementation: the kernels that run (`kernels/<op>/api.py`); None: each op's default. Both are settings
        of the computation, not of the checkpoint.

    A bias that a family lacks is a parameter holding zeros, and a norm shared by attention and MLP is held
    twice, so neither needs a switch.
    """

    family: str
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
    norms: Literal["before", "after", "around"] = "before"
    qk_norm: Literal["head", "joint"] | None = None
    rotary_in_window: Rotary | None = None
    window: int | tuple[int | None, ...] | None = None
    score_scale: float | None = None
    scores_by_layer: bool = False
    soft_cap: float | None = None
    logit_cap: float | None = None
    embedding_scale: float = 1.0

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The window of every layer."""
        return self.window if isinstance(self.window, tuple) else (self.window,) * self.n_layers

    @property
    def rotaries(self) -> tuple[Rotary, ...]:
        """The rotary embedding of every layer; none where positions are learned."""
        if self.rotary is None:
            return ()
        local = self.rotary_in_window or self.rotary
        return tuple(self.rotary if window is None else local for window in self.windows)

    def to_json(self) -> str:
        """The config as JSON text; `from_json` reads it back."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "ModelConfig":
        """Reads what `to_json` wrote. Raises InputError for anything else."""
        fields = json_object(parse_json(text, "a model's configuration"), "a model's configuration")
        try:
            for name in ("rotary", "rotary_in_window"):
                if fields[name] is not None:
                    scaling = fields[name].pop("scaling")
                    if scaling is not None:
                        scaling = _SCALINGS[scaling["kind"]](**scaling)
                    fields[name] = Rotary(**fields[name], scaling=scaling)
            if isinstance(fields["window"], list):
                fields["window"] = tuple(fields["window"])
            return cls(**fields)
        except (AttributeError, KeyError, TypeError) as error:
            raise InputError(f"a model's configuration has the fields that were written; {error}") from error

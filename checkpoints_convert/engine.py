"""The one engine that turns any family's checkpoint into our parameters, driven by its table.

Opening a checkpoint reads names and shapes only; values are read when asked for, a tensor at a time.
"""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from checkpoints_convert.families import FAMILIES
from checkpoints_convert.fields import Fields
from checkpoints_convert.match import Filling, Key, match_tensors
from checkpoints_convert.reader import DTYPES, Tensor, open_tensors
from checkpoints_convert.rules import Family, axis_sizes, split_layout
from headjax import zoo
from headjax.config import ModelConfig
from headjax.errors import InputError, shown
from headjax.io import read_json
from headjax.model import parameter_shapes

# The bits of a float's exponent: all set in infinities and NaNs, and only there.
EXPONENT = {"F16": 0x7C00, "BF16": 0x7F80, "F32": 0x7F800000, "F64": 0x7FF0000000000000}
# Numbers that are looked at together: few enough to stay in the processor's cache.
BLOCK = 1 << 18


# model_type, as a pattern -> why such models are not among the families.
DEAD_ENDS = {
    r"deepseek_v[23].*|kimi_k2|minicpm3": "its heads share one compressed key and value (multi-head latent "
    "attention), so that no head has weights of its own",
    r"(m|long|u)?t5.*|m?bart|led|pegasus.*|marian|blenderbot.*|prophetnet|whisper": "an encoder and a "
    "decoder; here a model is a decoder alone",
    r"(distil|al|mo)?bert.*|(xlm-|cam)?roberta.*|electra|deberta.*": "an encoder, which does not predict "
    "a next token",
    r"mamba.*|rwkv.*|falcon_mamba|xlstm": "it has no attention heads",
    r"mixtral|.*_moe|gpt_oss|dbrx|jamba|llama4.*": "a mixture of experts, which is not here yet",
    r"gemma3n.*|gemma4.*": "its layers share keys and values or mix their inputs, which is not here yet",
}


@dataclasses.dataclass(frozen=True)
class Source:
    """An open Hugging Face checkpoint whose tensors all fit.

    Attributes:
      shapes: of every parameter, stacked over layers.
      dtypes: of every parameter as `read` returns it.
      fillings: of every parameter of every layer; one that is not here is zeros.
      files: config.json and the weight files.
      ignored: `ignored_fields` of config.json that the user said to treat as absent, and `ignored_tensors`,
        heads for other tasks.
    """

    directory: Path
    config: ModelConfig
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, np.dtype]
    fillings: dict[Key, Filling]
    files: tuple[Path, ...]
    ignored: dict[str, list[str]]

    def read(self, names: Iterable[str], layer: int | None = None) -> dict[str, np.ndarray]:
        """Name -> array of parameters of one layer (None: of those outside the layers).

        Only the tensors needed are read, each once. Raises InputError for one that holds infinities or
        NaNs, or numbers beyond the range of its dtype here.
        """
        result, wanted = {}, defaultdict(list)
        for name in names:
            filling = self.fillings.get((name, layer))
            if filling is None:
                shape = self.shapes[name] if layer is None else self.shapes[name][1:]
                result[name] = np.zeros(shape, self.dtypes[name])
            else:
                wanted[filling.tensor.name].append((name, filling))
        for same_tensor in wanted.values():
            _, (tensor, rule, _) = same_tensor[0]
            values = tensor.read()
            _check_finite(tensor, values)
            parts = split_layout(values, rule.layout, axis_sizes(self.config), len(rule.parameters))
            for name, filling in same_tensor:
                part = parts[filling.part]
                if rule.plus:
                    part = part.astype(np.float32) + np.float32(rule.plus)
                if rule.reorder is not None:
                    part = rule.reorder(part, self.config)
                result[name] = _cast(tensor, part, self.dtypes[name])
        return result

    def with_dtype(self, dtype: np.dtype) -> "Source":
        """The same, read in one dtype."""
        return dataclasses.replace(self, dtypes=dict.fromkeys(self.dtypes, dtype))


def open_source(directory: Path, ignore_fields: Collection[str] = ()) -> Source:
    """Opens a Hugging Face directory. Raises InputError for anything in it that does not fit.

    `ignore_fields` are fields of config.json to treat as absent.
    """
    directory = Path(directory)
    family, config, switches = read_source_config(directory, ignore_fields)
    tensors, weight_files = open_tensors(directory)
    fillings, ignored_tensors = match_tensors(directory, family, config, switches, tensors)
    shapes = parameter_shapes(config)
    files = (directory / "config.json", *weight_files)
    ignored = {
        "ignored_fields": zoo.ignored_fields(directory, ignore_fields),
        "ignored_tensors": ignored_tensors,
    }
    return Source(directory, config, shapes, _dtypes(shapes, fillings), fillings, files, ignored)


def read_source_config(
    directory: Path, ignore_fields: Collection[str] = ()
) -> tuple[Family, ModelConfig, dict[str, bool]]:
    """What config.json of a Hugging Face directory says: the family, sizes, and the family's own switches."""
    file = directory / "config.json"
    if not file.is_file():
        raise InputError(f"{directory}: a checkpoint directory holds config.json; this one does not")
    values = read_json(file)
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        why = next((why for kind, why in DEAD_ENDS.items() if re.fullmatch(kind, str(model_type))), "")
        rule = f"model_type must be one of {', '.join(FAMILIES)}"
        raise InputError(f"{file}: {rule}; got {shown(model_type)}{why and f': {why}'}")
    family = FAMILIES[model_type]
    return family, *family.read_config(Fields(values, file, ignored=ignore_fields))


def _dtypes(shapes: Iterable[str], fillings: dict[Key, Filling]) -> dict[str, np.dtype]:
    """The dtype of every parameter as stored, float32 where its layers differ or something is added to what
    is stored; zeros take the embedding's.

    float64 becomes float32, the widest that JAX has unless told otherwise.
    """
    stored = defaultdict(set)
    for (name, _), filling in fillings.items():
        stored[name].add("F32" if filling.rule.plus else filling.tensor.dtype)
    result = {}
    for name in shapes:
        dtype, *others = stored[name] or stored["embed.W_E"]
        result[name] = DTYPES["F32" if others or dtype == "F64" else dtype]
    return result


def _check_finite(tensor: Tensor, values: np.ndarray) -> None:
    bits = values.reshape(-1).view(f"u{values.itemsize}")
    exponent = bits.dtype.type(EXPONENT[tensor.dtype])
    for start in range(0, bits.size, BLOCK):
        if ((bits[start : start + BLOCK] & exponent) == exponent).any():
            raise InputError(f"{tensor.file}: weights must be finite; {tensor.name} holds NaN or infinity")


def _cast(tensor: Tensor, values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore"):
        cast = values.astype(dtype, copy=False)
    narrower = jnp.finfo(dtype).maxexp < jnp.finfo(values.dtype).maxexp
    if narrower and not np.isfinite(cast).all():
        raise InputError(f"{tensor.file}: {tensor.name} holds numbers beyond the range of {dtype}")
    return cast

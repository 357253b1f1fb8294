"""A model as transformers has it in torch, whose heads are read and edited through hooks: the usual way, and
what ours is compared with.

Transformers runs it with its eager attention; each head's output is read, and edited, where it enters the
output projection.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers

from headjax import zoo
from headjax.axes import Head
from headjax.data.prompts import PromptBatch
from headjax.errors import InputError
from headjax.parameters.converted import is_converted, read_provenance
from headjax.study import Study


class Modules(NamedTuple):
    """Where transformers keeps the parts of an architecture; those of a layer from the layer on.

    `before_mlp` and `after_mlp` are the norms around the MLP, `after_attention` the one that follows
    attention; None where there is none. `values` makes the values, in some architectures among others.
    """

    layers: str
    final_norm: str
    output: str
    before_mlp: str | None
    values: str
    after_attention: str | None = None
    after_mlp: str | None = None


_LLAMA = Modules(
    "model.layers", "model.norm", "self_attn.o_proj", "post_attention_layernorm", "self_attn.v_proj"
)
_AROUND = _LLAMA._replace(
    before_mlp="pre_feedforward_layernorm",
    after_attention="post_attention_layernorm",
    after_mlp="post_feedforward_layernorm",
)
# transformers' model_type -> its modules.
MODULES = {
    "gpt2": Modules("transformer.h", "transformer.ln_f", "attn.c_proj", "ln_2", "attn.c_attn"),
    "gpt_neo": Modules(
        "transformer.h", "transformer.ln_f", "attn.attention.out_proj", "ln_2", "attn.attention.v_proj"
    ),
    "gptj": Modules("transformer.h", "transformer.ln_f", "attn.out_proj", "ln_1", "attn.v_proj"),
    "gpt_neox": Modules(
        *("gpt_neox.layers", "gpt_neox.final_layer_norm", "attention.dense"),
        *("post_attention_layernorm", "attention.query_key_value"),
    ),
    "phi": Modules(
        *("model.layers", "model.final_layernorm", "self_attn.dense", "input_layernorm", "self_attn.v_proj")
    ),
    "opt": Modules(
        *("model.decoder.layers", "model.decoder.final_layer_norm", "self_attn.out_proj"),
        *("final_layer_norm", "self_attn.v_proj"),
    ),
    "phi3": _LLAMA._replace(values="self_attn.qkv_proj"),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma"), _LLAMA),
    **dict.fromkeys(("gemma2", "gemma3_text"), _AROUND),
    **dict.fromkeys(("olmo2", "olmo3"), _AROUND._replace(before_mlp=None)),
}
NEAR = 1e-5  # logits of one head that tie within rounding, relative to its largest


class Run(NamedTuple):
    """A forward pass by torch: logits [B S V]; of every layer z and the values that heads read [B S H K], and
    patterns [B H S S] where they were asked for; what the final norm read at the last position [B D]."""

    logits: torch.Tensor
    z: list[torch.Tensor]
    values: list[torch.Tensor]
    patterns: tuple[torch.Tensor, ...] | None
    final: torch.Tensor


# What takes the place of the heads' outputs [B S H K] of a layer.
Edit = Callable[[int, torch.Tensor], torch.Tensor]


def scaled(gains: torch.Tensor) -> Edit:
    """`gains` [L B H] multiply heads' outputs at the last position."""

    def edit(layer: int, z: torch.Tensor) -> torch.Tensor:
        return torch.cat([z[:, :-1], z[:, -1:] * gains[layer][:, None, :, None]], dim=1)

    return edit


class TorchModel:
    """The model as transformers has it; float32 and eager attention."""

    def __init__(self, directory: Path):
        how = {"dtype": torch.float32, "attn_implementation": "eager"}
        self.model = transformers.AutoModelForCausalLM.from_pretrained(directory, **how).eval()
        self.names = MODULES[self.model.config.model_type]
        self.layers = self.model.get_submodule(self.names.layers)
        self.final_norm = self.model.get_submodule(self.names.final_norm)
        self.n_heads = self.model.config.num_attention_heads

    def run(self, prompts: PromptBatch, edit: Edit | None = None, **options: Any) -> Run:
        """Runs it on left-padded prompts; `options` are of transformers' forward."""
        z: list[torch.Tensor] = []
        values: list[torch.Tensor] = []
        final: list[torch.Tensor] = []

        def hook(layer: int) -> Callable:
            def edited(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
                heads = inputs[0].unflatten(-1, (self.n_heads, -1))
                z.append(heads if edit is None else edit(layer, heads))
                return (z[-1].flatten(-2),)

            return edited

        def keep_values(_module: torch.nn.Module, _inputs: Any, made: torch.Tensor) -> None:
            values.append(self.split_values(made))

        handles = [
            self.final_norm.register_forward_pre_hook(lambda _, inputs: final.append(inputs[0][:, -1]))
        ]
        for layer, block in enumerate(self.layers):
            output, of_values = map(block.get_submodule, (self.names.output, self.names.values))
            handles.append(output.register_forward_pre_hook(hook(layer)))
            handles.append(of_values.register_forward_hook(keep_values))
        mask = torch.tensor(np.asarray(prompts.mask)).long()
        try:
            found = self.model(
                input_ids=torch.tensor(np.asarray(prompts.tokens)).long(),
                attention_mask=mask,
                position_ids=(mask.cumsum(1) - 1).clamp(min=0),
                use_cache=False,
                **options,
            )
        finally:
            for handle in handles:
                handle.remove()
        return Run(found.logits, z, values, found.attentions, final[0])

    def logits(self, prompts: PromptBatch, edit: Edit | None = None) -> torch.Tensor:
        """Of the last position, [B V]; no others are computed."""
        return self.run(prompts, edit, logits_to_keep=1).logits[:, -1]

    def logprob(self, prompts: PromptBatch, edit: Edit | None = None) -> torch.Tensor:
        """Log-probability of the answers [B]."""
        logits = self.logits(prompts, edit)
        return logits.log_softmax(-1)[torch.arange(len(logits)), torch.tensor(prompts.answers).long()]

    @property
    def queries(self) -> str | None:
        """The module that makes queries alone; None where one makes keys and values, too."""
        name = self.names.values.replace("v_proj", "q_proj")
        return name if name != self.names.values else None

    def run_queries(
        self,
        prompts: PromptBatch,
        layer: int,
        edit: Edit | None,
        receive: Callable[[torch.Tensor], torch.Tensor] = lambda queries: queries,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries of a layer [B S H K], which `receive` edits, and logits [B V] of the last position.

        For families with a module of queries that no norm of all heads follows.
        """
        kept: list[torch.Tensor] = []

        def hook(_module: torch.nn.Module, _inputs: Any, made: torch.Tensor) -> torch.Tensor:
            kept.append(receive(made.unflatten(-1, (self.n_heads, -1))))
            return kept[0].flatten(-2)

        handle = self.layers[layer].get_submodule(self.queries or "").register_forward_hook(hook)
        try:
            logits = self.logits(prompts, edit)
        finally:
            handle.remove()
        return kept[0], logits

    def written(self, head: Head, z: torch.Tensor, of_all: torch.Tensor | None = None) -> torch.Tensor:
        """What one head's output z [B K] writes to the residual stream [B D], without the bias.

        Through the norm after attention, if there is one, at the scale that it has for all heads' outputs
        `of_all` [B H K], or at scale 1.
        """
        block = self.layers[head.layer]
        project = block.get_submodule(self.names.output)
        alone = torch.zeros(len(z), self.n_heads, z.shape[-1])
        alone[:, head.head] = z
        written = project(alone.flatten(1)) - project(torch.zeros_like(alone).flatten(1))
        if self.names.after_attention is None:
            return written
        norm = block.get_submodule(self.names.after_attention)
        scale = 1.0 if of_all is None else _scale(norm, project(of_all.flatten(1)))
        return written / scale * _gain(norm)

    def read(self, final: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
        """A part [B D] of the final residual through the final norm at the residual's own scale."""
        norm, part = self.final_norm, part.double()
        if isinstance(norm, torch.nn.LayerNorm):
            part = part - part.mean(-1, keepdim=True)
        return part / _scale(norm, final.double()) * _gain(norm)

    def first_mlp(self, x: torch.Tensor) -> torch.Tensor:
        """What the MLP of the first layer writes for a residual."""
        block = self.layers[0]
        if self.names.before_mlp is not None:
            x = block.get_submodule(self.names.before_mlp)(x)
        x = block.mlp(x) if hasattr(block, "mlp") else block.fc2(block.activation_fn(block.fc1(x)))
        return x if self.names.after_mlp is None else block.get_submodule(self.names.after_mlp)(x)

    def W_V(self, head: Head) -> torch.Tensor:
        """[D K] that a query head reads, from the module that makes keys and values."""
        weight = self.layers[head.layer].get_submodule(self.names.values).weight
        weight = weight if self.model.config.model_type == "gpt2" else weight.T  # transformers' Conv1D
        return self.split_values(weight)[:, head.head]

    def split_values(self, made: torch.Tensor) -> torch.Tensor:
        """The values that each query head reads, [... H K], in what the module of values makes, [... N]."""
        family, H = self.model.config.model_type, self.n_heads
        n_kv_heads = getattr(self.model.config, "num_key_value_heads", None) or H
        if family == "gpt2":
            values = made.unflatten(-1, (3, H, -1))[..., 2, :, :]
        elif family == "gpt_neox":
            values = made.unflatten(-1, (H, 3, -1))[..., 2, :]
        elif family == "phi3":  # the last of queries, keys and values
            values = made.unflatten(-1, (H + 2 * n_kv_heads, -1))[..., -n_kv_heads:, :]
        else:
            values = made.unflatten(-1, (n_kv_heads, -1))
        return values.repeat_interleave(H // values.shape[-2], dim=-2)


def ranked(logits: torch.Tensor, targets: torch.Tensor, k: int) -> torch.Tensor:
    """Hits [2 N], plain and suppression, as published: by sorting out the first k and the last k."""
    best = [logits.topk(k, dim=1, largest=largest).indices for largest in (True, False)]
    return torch.stack([(one == targets[:, None]).any(dim=1) for one in best])


def hit_bounds(logits: torch.Tensor, targets: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which targets [N] are among the first k of their logits [N V]: surely, and if rounding helps."""
    own, near = logits.gather(1, targets[:, None]), NEAR * logits.abs().max()
    surely = (logits > own - near).sum(1) - 1 < k  # itself is among them
    return surely, (logits > own + near).sum(1) < k


def ties(logits: torch.Tensor, targets: torch.Tensor, k: int) -> torch.Tensor:
    """Which hits [2 N], plain and suppression, are decided by less than rounding."""
    bounds = (hit_bounds(sign * logits, targets, k) for sign in (1, -1))
    return torch.stack([surely != maybe for surely, maybe in bounds])


def hugging_face_files(study: Study) -> Path:
    """Where they are. Raises InputError where only the converted model is here."""
    directory = study.source.directory
    if is_converted(directory):
        directory = zoo.find_source(read_provenance(directory)["source"]).directory
    if is_converted(directory):
        raise InputError(f"{directory}: torch needs the model's Hugging Face files; this one is converted")
    return directory


def _scale(norm: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What a norm divides x by."""
    if isinstance(norm, torch.nn.LayerNorm):
        return (x.var(-1, keepdim=True, correction=0) + norm.eps).sqrt()
    eps = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon
    return (x.square().mean(-1, keepdim=True) + eps).sqrt()


def _gain(norm: torch.nn.Module) -> torch.Tensor:
    """What a norm multiplies by; Gemma's stores one less."""
    return norm.weight + 1 if type(norm).__name__.startswith("Gemma") else norm.weight

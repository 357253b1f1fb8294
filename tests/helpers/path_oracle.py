"""The oracle of path patching: the paper's algorithm in torch, one sender and one forward pass at a time.

Wang et al. 2022, "Interpretability in the Wild", appendix B, through hooks on Hugging Face models. The one
thing that hooks cannot do directly is to give one head of a key/value group a key of its own; so every
receiver's z is read off a run in which its whole group has that key, and put into the final run.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import transformers

from tests.helpers.torch_or_skip import torch
from tests.helpers.torch_oracle import _LAYERS, _OUTPUT_PROJECTION

# Where q, k and v come out of one module, and its axes; elsewhere they come out of three of self_attn.
_FUSED = {
    "gpt2": ("attn.c_attn", (3, "heads", "K")),
    "gpt_neox": ("attention.query_key_value", ("heads", 3, "K")),
}

torch.set_num_threads(1)  # models this small lose by waiting for each other's threads

Sender = tuple[int, int]
Receiver = tuple[int, int, str]


class Run(NamedTuple):
    """logits [B V] of the last position; of every layer: z [B S H K], q, k, v [B S heads K], MLP output."""

    logits: torch.Tensor
    z: list[torch.Tensor]
    inputs: list[dict[str, torch.Tensor]]
    mlps: list[torch.Tensor]


@torch.no_grad()
def run(
    model: transformers.PreTrainedModel,
    tokens: np.ndarray,
    mask: np.ndarray,
    *,
    edit_z: Callable[[int, torch.Tensor], torch.Tensor] = lambda layer, z: z,
    edit_input: Callable[[int, str, torch.Tensor], torch.Tensor] = lambda layer, letter, x: x,
    edit_mlp: Callable[[int, torch.Tensor], torch.Tensor] = lambda layer, x: x,
) -> Run:
    """One forward pass; what is recorded is what the edits made of it."""
    family, heads = model.config.model_type, model.config.num_attention_heads
    layers = model.get_submodule(_LAYERS[family])
    zs, inputs, mlps, handles = [], [{} for _ in layers], [], []

    def of_z(layer: int):
        def hook(_module, args):
            zs.append(edit_z(layer, args[0].unflatten(-1, (heads, -1)).clone()))
            return (zs[-1].flatten(-2),)

        return hook

    def of_mlp(layer: int):
        def hook(_module, _args, out):
            mlps.append(edit_mlp(layer, out))
            return mlps[-1]

        return hook

    def of_input(layer: int, letter: str):
        def hook(_module, _args, out):
            head_size = out.shape[-1] // (heads if letter == "q" else model.config.num_key_value_heads)
            inputs[layer][letter] = edit_input(layer, letter, out.unflatten(-1, (-1, head_size)).clone())
            return inputs[layer][letter].flatten(-2)

        return hook

    def of_fused(layer: int, axes: tuple):
        def hook(_module, _args, out):
            sizes = [{"heads": heads, "K": -1}.get(size, size) for size in axes]
            parts = out.unflatten(-1, sizes).unbind(2 + axes.index(3))
            edited = [edit_input(layer, letter, x.clone()) for letter, x in zip("qkv", parts, strict=True)]
            inputs[layer] = dict(zip("qkv", edited, strict=True))
            return torch.stack(edited, 2 + axes.index(3)).flatten(2)

        return hook

    for layer, block in enumerate(layers):
        projection = block.get_submodule(_OUTPUT_PROJECTION[family])
        handles.append(projection.register_forward_pre_hook(of_z(layer)))
        handles.append(block.mlp.register_forward_hook(of_mlp(layer)))
        if family in _FUSED:
            name, axes = _FUSED[family]
            handles.append(block.get_submodule(name).register_forward_hook(of_fused(layer, axes)))
        else:
            for letter in "qkv":
                # Where all heads' queries are normed together, a head's own is what comes out of that.
                joint = family in ("olmo2", "olmo3") and letter != "v"
                module = block.get_submodule(f"self_attn.{letter}_{'norm' if joint else 'proj'}")
                handles.append(module.register_forward_hook(of_input(layer, letter)))
    attention_mask = torch.tensor(np.asarray(mask), dtype=torch.long)
    try:
        logits = model(
            input_ids=torch.tensor(np.asarray(tokens), dtype=torch.long),
            attention_mask=attention_mask,
            position_ids=(attention_mask.cumsum(1) - 1).clamp(min=0),
            use_cache=False,
        ).logits[:, -1]
    finally:
        for handle in handles:
            handle.remove()
    return Run(logits, zs, inputs, mlps)


def patched_logits(
    model: transformers.PreTrainedModel,
    clean: Run,
    corrupted: Run,
    tokens: np.ndarray,
    mask: np.ndarray,
    sender: Sender,
    receivers: tuple[Receiver, ...],
    *,
    positions: str,
    mlps_frozen: bool = False,
) -> np.ndarray:
    """Logits [B V] of the last position; without receivers those of the path run itself."""
    at = slice(-1, None) if positions == "last" else slice(None)

    def send(layer: int, _z: torch.Tensor) -> torch.Tensor:
        z = clean.z[layer].clone()
        if layer == sender[0]:
            z[:, at, sender[1]] = corrupted.z[layer][:, at, sender[1]]
        return z

    frozen = {"edit_mlp": lambda layer, _: clean.mlps[layer]} if mlps_frozen else {}
    path = run(model, tokens, mask, edit_z=send, **frozen)
    if not receivers:
        return path.logits.numpy()

    received: dict[tuple[int, int], torch.Tensor] = {}

    def receive(layer: int, z: torch.Tensor) -> torch.Tensor:
        for at_layer, head in received:
            if at_layer == layer:
                z[:, :, head] = received[layer, head]
        return z

    group = model.config.num_attention_heads // getattr(
        model.config, "num_key_value_heads", model.config.num_attention_heads
    )
    for layer in sorted({layer for layer, _, _ in receivers}):
        found = {}
        for head in sorted({head for at_layer, head, _ in receivers if at_layer == layer}):
            letters = {letter for *place, letter in receivers if tuple(place) == (layer, head)}

            def read(at_layer: int, letter: str, x: torch.Tensor, layer=layer, head=head, letters=letters):
                if at_layer == layer and letter in letters:
                    row = head if letter == "q" else head // group
                    x[:, :, row] = path.inputs[layer][letter][:, :, row]
                return x

            found[layer, head] = run(model, tokens, mask, edit_z=receive, edit_input=read).z[layer][
                :, :, head
            ]
        received |= found
    return run(model, tokens, mask, edit_z=receive).logits.numpy()

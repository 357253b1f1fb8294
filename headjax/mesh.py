"""Which axis of which parameter is split over the devices of a mesh."""

from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

# The mesh axis that splits one model; "data" and any other axis hold copies of it.
MODEL_AXIS = "model"

# Axis letters of every parameter; the legend is in axes.py (P: learned positions).
PARAMETER_AXES = {
    "embed.W_E": "V D",
    "embed.W_pos": "P D",
    "blocks.ln1.scale": "L D",
    "blocks.ln1.bias": "L D",
    "blocks.ln2.scale": "L D",
    "blocks.ln2.bias": "L D",
    "blocks.attn.W_Q": "L D H K",
    "blocks.attn.W_K": "L D G K",
    "blocks.attn.W_V": "L D G K",
    "blocks.attn.W_O": "L H K D",
    "blocks.attn.b_Q": "L H K",
    "blocks.attn.b_K": "L G K",
    "blocks.attn.b_V": "L G K",
    "blocks.attn.b_O": "L D",
    "blocks.mlp.W_in": "L D F",
    "blocks.mlp.W_gate": "L D F",
    "blocks.mlp.W_out": "L F D",
    "blocks.mlp.b_in": "L F",
    "blocks.mlp.b_gate": "L F",
    "blocks.mlp.b_out": "L D",
    "ln_final.scale": "D",
    "ln_final.bias": "D",
    "unembed.rows": "V D",
    "unembed.b_U": "V",
}

# Heads, MLP hidden and vocabulary. Query heads of one key/value head are neighbours, so that where both
# counts divide, equal parts of each keep a key/value head on the device of its query heads.
SPLIT_AXES = frozenset("HGFV")


def parameter_sharding(name: str, shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """How a parameter lies on the mesh: split over "model" where that divides it, else one copy each.

    `shape` is the stacked parameter's or, without the leading L, one layer's.
    """
    letters = PARAMETER_AXES[name].split()[-len(shape) :]
    parts = dict(mesh.shape).get(MODEL_AXIS, 1)
    split = [
        MODEL_AXIS if letter in SPLIT_AXES and size % parts == 0 else None
        for letter, size in zip(letters, shape, strict=True)
    ]
    if parts == 1:
        split = []
    # The compiler places what is computed from the parameters, whatever kind of axes the mesh came with.
    automatic = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))
    return NamedSharding(automatic, PartitionSpec(*split))

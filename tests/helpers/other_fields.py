"""Fields of a run with other values than they have."""

# Fields outside analyses, with other values than they have.
OTHER = {
    **{"top_k": 10, "top_k_copying": 5, "first_mlp": False, "threshold": 0.5, "count_suppression": False},
    **{"dtype": "bfloat16", "batch_size": 3, "templates": ("No <X> means",), "n_prompts": 2, "bos": True},
    **{
        "variant_batch": 2,
        "stream": True,
        "tables": ("tex",),
        "circuits": ("L1H2",),
        "heat_maps": ("copying",),
    },
    **{"orientation": "head_x", "origin": "upper", "relations": ("copying",), "min_pairs": 5},
    **{"implementation": "reference", "mesh": {"data": 2, "model": 4}, "precision": "default"},
}

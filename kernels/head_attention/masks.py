"""Which keys a query may attend to; shared by the implementations that hold it as an array."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Int

# In place of a forbidden score. Finite, so that a row with nothing to attend to gives no NaN, and far
# below any real score.
MASKED = -1e30


def allowed_keys(
    keys: Int[Array, " t"],
    queries: Int[Array, " S"],
    valid: Bool[Array, "B t"] | None,
    knock_out: Int[Array, "#B #S #H P"] | None,
    forced: Int[Array, "#B #S #H"] | None,
) -> Bool[Array, "#B #H S t"]:
    """True where query s may attend to cached position ``keys[t]``.

    Args:
      keys: cached positions, here those of one block or all of them.
      queries: where the queries stand among the cached positions.
      valid: of the same positions as `keys`.
    """
    allowed = (keys[None, :] <= queries[:, None])[None, None]
    if valid is not None:
        allowed = allowed & valid[:, None, None, :]
    if forced is not None:
        key = jnp.swapaxes(forced, 1, 2)[..., None]
        allowed = allowed & ((key < 0) | (key == jnp.expand_dims(keys, (0, 1, 2))))
    if knock_out is not None:
        # One removed key at a time, so that nothing of size S x T x P is ever formed.
        for removed in jnp.moveaxis(jnp.swapaxes(knock_out, 1, 2), -1, 0):
            allowed = allowed & (removed[..., None] != jnp.expand_dims(keys, (0, 1, 2)))
    return allowed

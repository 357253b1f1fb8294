"""Which keys a query may attend to; shared by the implementations that hold it as an array."""

from jax import Array
from jaxtyping import Bool, Int

# In place of a forbidden score. Finite, so that a row with nothing to attend to gives no NaN, and far
# below any real score.
MASKED = -1e30


def allowed_keys(
    keys: Int[Array, " t"],
    queries: Int[Array, " S"],
    valid: Bool[Array, "B t"] | None,
) -> Bool[Array, "#B 1 S t"]:
    """True where query s may attend to cached position ``keys[t]``.

    Args:
      keys: cached positions, here those of one block or all of them.
      queries: where the queries stand among the cached positions.
      valid: of the same positions as `keys`.
    """
    allowed = (keys[None, :] <= queries[:, None])[None, None]
    if valid is not None:
        allowed = allowed & valid[:, None, None, :]
    return allowed

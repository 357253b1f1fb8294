"""How products become scores, and which keys have one for a query; shared by all but the references."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

# In place of a forbidden score. Finite, so that a row with nothing to attend to gives no NaN, and far
# below any real score.
MASKED = -1e30


def check(soft_cap: float | None, window: int | Int[Array, ""] | None) -> None:
    """Raises ValueError for a cap or a window that no score could pass. A window in an array is not read."""
    if soft_cap is not None and not soft_cap > 0:
        raise ValueError(f"a soft cap must be above 0; got {soft_cap}")
    if isinstance(window, int) and window < 1:
        raise ValueError(f"a window must show at least the query's own position; got {window}")


def scores_of(
    products: Float[Array, "*shape"], scale: float, soft_cap: float | None
) -> Float[Array, "*shape"]:
    """Products of queries and keys, scaled, then bent to stay within the soft cap, if there is one."""
    scores = products * scale
    return scores if soft_cap is None else soft_cap * jnp.tanh(scores / soft_cap)


def allowed_keys(
    keys: Int[Array, " t"],
    queries: Int[Array, " S"],
    valid: Bool[Array, "B t"] | None,
    window: Int[Array, ""] | None,
) -> Bool[Array, "#B 1 S t"]:
    """True where query s may attend to cached position ``keys[t]``.

    Args:
      keys: cached positions, here those of one block or all of them.
      queries: where the queries stand among the cached positions.
      valid: of the same positions as `keys`.
      window: how many cached positions a query sees, its own the last of them.
    """
    allowed = (keys[None, :] <= queries[:, None])[None, None]
    if window is not None:
        allowed = allowed & (keys[None, :] > queries[:, None] - window)[None, None]
    if valid is not None:
        allowed = allowed & valid[:, None, None, :]
    return allowed

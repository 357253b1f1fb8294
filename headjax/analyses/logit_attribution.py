"""Direct logit attribution: what each head adds to the logit of the answer, without later layers.

The residual that the final norm reads is a sum of parts, one of every head among them, and at its measured
scale the norm is linear but for its bias. So the logit is a sum over parts (Elhage et al. 2021, "A
Mathematical Framework for Transformer Circuits"; Wang et al. 2022, "Interpretability in the Wild", section
3.1). A head's part is ``z . (W_O N u)``: N is the norm's linear part at this prompt's scale, u the row of
the unembedding of the answer, or the answer's minus the distractor's. Read from right to left it costs a
vector of D a prompt, and never an array [.., H, D].

Where a norm follows attention, a head's part passes it at its measured scale too; where the model caps its
logits, what is taken apart is the logit before the cap.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from headjax import costs
from headjax.analyses.base import Asked, Coordinates, effect_grids, sweep_options
from headjax.costs import Cost, Machine
from headjax.data.prompts import PromptBatch
from headjax.engine.batches import Remember, Track, Work, check_prompts, compute_anew, untracked
from headjax.engine.layer_sweep import Ends, LayerRun, Sweep, run_sweep
from headjax.errors import InputError, shown
from headjax.grid import Coordinate, GridSet
from headjax.model import Block, Transformer
from headjax.parameters.layered import LayeredModel
from headjax.result import Result
from headjax.study import Study


class LogitParts(NamedTuple):
    """The logit, or difference of logits, and its parts, which sum to it.

    Attributes:
      heads: [B L H], what each head writes.
      attention_biases: [B L], each layer's b_O.
      mlps: [B L], what else each layer wrote: its MLP.
      embedding: [B], what entered the first layer: token and, where it is learned, position.
      final_bias: [B], the final norm's bias and the unembedding's.
      logit: [B], as the model gives it, before its cap if it has one.
    """

    heads: Float[Array | np.ndarray, "B L H"]
    attention_biases: Float[Array | np.ndarray, "B L"]
    mlps: Float[Array | np.ndarray, "B L"]
    embedding: Float[Array | np.ndarray, " B"]
    final_bias: Float[Array | np.ndarray, " B"]
    logit: Float[Array | np.ndarray, " B"]


def logit_attribution(
    model: Transformer | LayeredModel,
    prompts: PromptBatch,
    *,
    metric: str = "logit",
    batch_size: int = 64,
    track: Track = untracked,
    remember: Remember = compute_anew,
) -> LogitParts:
    """Parts of the answer's logit at the last position, or of answer minus distractor ("logit_diff").

    Raises InputError for "logit_diff" of prompts without distractors and for logits that are not finite.
    """
    prompts = check_prompts(prompts, model.config, batch_size=batch_size)
    distractors = asked_distractors(prompts, metric)
    arrays = (prompts.tokens, prompts.mask, prompts.answers)
    if distractors is not None:
        arrays += (distractors,)
    how = {"batch_size": batch_size, "track": track, "remember": remember}
    return check_finite(run_sweep(SWEEP, model, arrays, label="logit attribution", **how), prompts)


def asked_distractors(prompts: PromptBatch, metric: str) -> Int[np.ndarray, " B"] | None:
    """The distractors for "logit_diff". Raises InputError for other metrics, and where there are none."""
    if metric not in ("logit", "logit_diff"):
        raise InputError(f"field 'metric' must be one of logit, logit_diff; got {shown(metric)}")
    if metric == "logit":
        return None
    if prompts.distractors is None:
        raise InputError(f"metric 'logit_diff' needs a distractor; {prompts.prompts[0].name} has none")
    return prompts.distractors


def check_finite(parts: LogitParts, prompts: PromptBatch) -> LogitParts:
    """The parts as they are. Raises InputError for a prompt whose logit is not finite."""
    finite = np.isfinite(parts.logit)
    if not finite.all():
        name = prompts.prompts[int(np.argmin(finite))].name
        raise InputError(f"logits must be finite numbers; {name} gives NaN or infinity")
    return parts


class ReadOut(NamedTuple):
    """What is asked of the logits, of the answer or of the answer minus the distractor.

    Attributes:
      u, b: the unembedding's row and bias.
      direction: in which the residual is read, but for the norm's scale.
    """

    u: Float[Array, "B D"]
    b: Float[Array, " B"]
    direction: Float[Array, "B D"]


class LayerParts(NamedTuple):
    """What the heads, b_O and the MLP of a layer (L: of all) add along the direction of a `ReadOut`."""

    heads: Float[Array, "*L B H"]
    attention_biases: Float[Array, "*L B"]
    mlps: Float[Array, "*L B"]


def read_out(
    model: Transformer,
    _tokens: Int[Array, "B S"],
    _mask: Bool[Array, "B S"],
    answers: Int[Array, " B"],
    distractors: Int[Array, " B"] | None = None,
) -> ReadOut:
    """With the d for which ``part . d = N(part) . u`` for any part of the residual at scale 1: N transposed.

    ``N(x) = scale * (x - mean x) / deviation`` (no mean for a root-mean-square norm), the deviation being
    that of the whole residual; subtracting a mean is its own transpose.
    """
    u = model.unembed_rows[answers].astype(jnp.float32)
    b = model.b_U[answers].astype(jnp.float32)
    if distractors is not None:
        u -= model.unembed_rows[distractors].astype(jnp.float32)
        b -= model.b_U[distractors].astype(jnp.float32)
    direction = u * model.ln_final.scale[...].astype(jnp.float32)[None]
    if model.config.norm == "layer":
        direction -= direction.mean(axis=-1, keepdims=True)
    return ReadOut(u, b, direction)


def layer_parts(block: Block, ran: LayerRun, asked: ReadOut, _shared: None) -> LayerParts:
    """The parts of one layer: of what its heads write, and what it changes the residual by in all."""
    z, before, after, direction = ran.z[:, -1], ran.before[:, -1], ran.after[:, -1], asked.direction
    precision, scale = block.config.precision, block.write_scale(z[:, None])[:, 0]
    W_O, b_O = block.writes
    z, before, after, W_O, b_O = (values.astype(jnp.float32) for values in (z, before, after, W_O, b_O))
    # At its measured scale the norm after attention is linear too.
    heads = jnp.sum(z * jnp.einsum("hkd,bd->bhk", W_O, direction, precision=precision), axis=-1) * scale
    biases = jnp.matmul(direction, b_O, precision=precision) * scale[:, 0]
    written = jnp.sum((after - before) * direction, axis=-1)
    return LayerParts(heads, biases, written - heads.sum(axis=-1) - biases)


def scale_parts(model: Transformer, asked: ReadOut, parts: LayerParts, ends: Ends) -> LogitParts:
    """All parts at the scale that the final norm has for the last residual."""
    first, last = ends.first.astype(jnp.float32), ends.last.astype(jnp.float32)
    centred = last - last.mean(axis=-1, keepdims=True) if model.config.norm == "layer" else last
    scale = jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1) + model.config.norm_eps)
    parts = jax.tree.map(lambda part: jnp.moveaxis(part, 0, 1), parts)
    norm_bias = model.ln_final.bias[...].astype(jnp.float32)
    return LogitParts(
        heads=parts.heads * scale[:, None, None],
        attention_biases=parts.attention_biases * scale[:, None],
        mlps=parts.mlps * scale[:, None],
        embedding=jnp.sum(first * asked.direction, axis=-1) * scale,
        final_bias=jnp.matmul(asked.u, norm_bias, precision=model.config.precision) + asked.b,
        logit=jnp.sum(model.ln_final(last) * asked.u, axis=-1) + asked.b,
    )


# The final norm is linear but for its scale, one number a prompt: the parts are taken as the layers pass, and
# scaled when the last one has.
SWEEP = Sweep("logit_attribution", read_out, layer_parts, scale_parts)


@dataclass(frozen=True, kw_only=True)
class LogitAttribution(Asked):
    """Direct logit attribution of the answer and, where there are distractors, of the difference."""

    kind = "logit_attribution"
    streams = True
    drawn_by = "metric"

    def check(self, study: Study, before: Coordinates) -> set[Coordinate]:
        return self.effects_on(study, "logit_attribution", _metrics(study.task_batch(self.prompts)))

    def cost(self, study: Study, machine: Machine) -> Cost:
        batch = study.task_batch(self.prompts)
        cost, arrays = costs.NOTHING, (batch.tokens, batch.mask, batch.answers)
        for metric in _metrics(batch):
            more = () if metric == "logit" else (batch.distractors,)
            cost += costs.mapped(study, machine, SWEEP, *arrays, *more)
        return cost

    def run(self, study: Study, work: Work) -> Result:
        batch = study.task_batch(self.prompts)
        how, grids = sweep_options(study, work), []
        for metric in _metrics(batch):
            found = logit_attribution(study.sweep_model(), batch, metric=metric, **how)
            grids += effect_grids(study, batch, "logit_attribution", found.heads, metric, found.logit)
        return Result(GridSet(tuple(grids)))


def _metrics(batch: PromptBatch) -> tuple[str, ...]:
    return ("logit",) if batch.distractors is None else ("logit", "logit_diff")

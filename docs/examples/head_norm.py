"""How long what every head writes is: an analysis in a file of its own.

python -m experiments.run --config docs/examples/head_norm.py
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments.config import RunConfig
from headjax import costs
from headjax.analyses.base import Asked, effect_grids, sweep_options
from headjax.analyses.registry import register
from headjax.engine.layer_sweep import Sweep, run_sweep
from headjax.grid import Coordinate, GridSet
from headjax.options import option
from headjax.report.table import Table
from headjax.result import Result
from headjax.study import Compute, Data


class LargestNorm(NamedTuple):
    model: str
    layer: int
    norm: float


@register
@dataclass(frozen=True, kw_only=True)
class HeadNorm(Asked):
    """How long what each head writes before W_O is, at the last position.

    Attributes:
      power: of the norm.
    """

    kind = "head_norm"
    streams = True
    reads_tables: ClassVar = {"largest_norms": LargestNorm}
    power: float = option(1.0, least=0)

    def check(self, study, before):
        return {Coordinate("head_norm", task) for task in self.tasks(study)}

    def cost(self, study, machine):
        batch = study.task_batch(self.prompts)
        return costs.mapped(study, machine, NORMS, batch.tokens, batch.mask)

    def run(self, study, work):
        batch = study.task_batch(self.prompts)
        how = sweep_options(study, work)
        norms = run_sweep(NORMS, study.sweep_model(), (batch.tokens, batch.mask), label="head norms", **how)
        norms = norms**self.power
        grids = effect_grids(study, batch, "head_norm", norms, "", np.zeros(len(norms)))
        largest = enumerate(norms.max(axis=(0, 2)))
        rows = tuple(LargestNorm(study.display_name, i, float(n)) for i, n in largest)
        return Result(GridSet(tuple(grids)), {"largest_norms": rows})

    def tables(self, name, found, report):
        stem = self.stem(name, "largest_norms")
        return [Table(stem, LargestNorm._fields, found.tables[stem], f"largest norms of {name}")]


NORMS = Sweep(
    "head_norms",
    begin=lambda model, tokens, mask: None,
    layer=lambda block, ran, asked, shared: jnp.linalg.norm(ran.z[:, -1], axis=-1),
    finish=lambda model, asked, kept, ends: jnp.moveaxis(kept, 0, 1),
)


def get_config():
    return RunConfig(
        "trained",
        analyses={"head_norm": HeadNorm(), "squared": HeadNorm(power=2.0)},
        data=Data(templates=("<X> is",)),
        compute=Compute(batch_size=8),
        out="out/head_norm",
    )

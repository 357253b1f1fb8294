"""Benchmark of head ablation of a model larger than the memory that the run is given.

The sweep reads a made-up Llama checkpoint layer by layer, in a fresh process whose memory for data the system
limits to less than the parameters need. It is compared with the sweep that holds the whole model, in a
process without a limit, before any time is printed.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from checkpoints_convert.engine import open_source
from experiments.benchmarks.measure import (
    bytes_read,
    matmul_rate,
    measured_in_child,
    peak_resident,
    seconds,
    usable_cores,
)
from experiments.benchmarks.synthetic import llama_config, write_checkpoint
from headjax.analyses.head_ablation import head_ablation
from headjax.data.prompts import Prompt, PromptBatch
from headjax.engine.metrics import Metrics
from headjax.model import build_model, parameter_shapes
from headjax.parameters.hugging_face import HuggingFace
from headjax.parameters.layered import layered_model

CONFIG = llama_config(layers=48, heads=16, kv_heads=4, d_head=64, d_model=1024, d_mlp=3584, vocabulary=8009)
PROMPTS, TOKENS = 4, 12
LIMIT_BYTES = 2 * 2**30
TOLERANCE = 2e-5  # of the largest number, as in the tests


def prompts() -> PromptBatch:
    """Random tokens, all prompts of one length."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.integers(0, CONFIG["vocab_size"], shape).astype(np.int32)  # noqa: E731
    return PromptBatch(
        tokens=draw(PROMPTS, TOKENS),
        mask=np.ones((PROMPTS, TOKENS), bool),
        sources=np.zeros(PROMPTS, np.int32),
        answers=draw(PROMPTS),
        distractors=draw(PROMPTS),
        corrupted=None,
        prompts=tuple(Prompt(f"prompt {i}", "", "", relation="random") for i in range(PROMPTS)),
        bos=False,
    )


def sweep_limited(directory: Path, out: Path) -> dict:
    """Sweeps in this process, whose data may take LIMIT_BYTES, and what that cost."""
    import resource  # not on Windows

    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_BYTES, LIMIT_BYTES))
    before, ends = bytes_read(), []

    def timed(layers: Iterable, total: int, label: str) -> Iterator:
        for layer in layers:
            yield layer
            ends.append(time.perf_counter())

    model = layered_model(HuggingFace(open_source(directory)), jnp.float32)
    found = head_ablation(model, prompts(), kv_groups=True, track=timed)
    np.savez(out, **found.ablated._asdict())
    return {
        "layers": np.diff(ends).tolist(),
        "bytes": bytes_read() - before,
        "peak": peak_resident(),
        "device": f"{jax.devices()[0].platform}, {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
    }


def sweep_resident(directory: Path) -> tuple[Metrics, float]:
    """The same with the whole model in memory: metrics [L U B], and seconds when all is compiled."""
    source = HuggingFace(open_source(directory))
    read, config = partial(source.read, dtype=jnp.float32), source.config
    names = parameter_shapes(config)
    of_layers = [name for name in names if name.startswith("blocks.")]
    layers = [read(of_layers, layer) for layer in range(config.n_layers)]
    parameters = {name: jnp.stack([layer.pop(name) for layer in layers]) for name in of_layers}
    parameters |= read([name for name in names if name not in parameters], None)
    model, found = build_model(config, parameters), []
    times = [seconds(lambda: found.append(head_ablation(model, prompts(), kv_groups=True))) for _ in range(2)]
    return found[-1].ablated, times[-1]


def bench_wavefront() -> None:
    """Prints seconds a layer, bytes read and peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        directory, out = Path(folder) / "model", Path(folder) / "found.npz"
        directory.mkdir()
        write_checkpoint(directory, CONFIG)
        stored = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
        measured = measured_in_child("experiments.benchmarks.wavefront", directory, out)
        with np.load(out) as file:
            ours = Metrics(*(file[name] for name in Metrics._fields))
        expected, resident_time = sweep_resident(directory)

    for name, one, other in zip(Metrics._fields, ours, expected, strict=True):
        tolerance = 0 if name == "accuracy" else TOLERANCE * np.abs(other).max()
        assert np.abs(one - other).max() <= tolerance, name
    needed = 2 * stored  # float32 of what is stored in bfloat16
    assert needed > LIMIT_BYTES > measured["peak"], (needed, measured["peak"])
    assert stored <= measured["bytes"] < stored + 2**26, (stored, measured["bytes"])

    L = CONFIG["num_hidden_layers"]
    print(f"device: {measured['device']}, {usable_cores()} cores; jax {measured['jax']}; float32")
    print(f"matrix product {matmul_rate() / 1e9:.0f} GFLOP/s")
    print(f"{L} layers, {PROMPTS} prompts of {TOKENS} tokens, {ours.logprob[..., 0].size} variants")
    print(f"parameters {needed / 2**30:.2f} GiB, limit of the process {LIMIT_BYTES / 2**30:.2f} GiB for data")
    print(f"peak resident memory {measured['peak'] / 2**30:.2f} GiB")
    print(f"read {measured['bytes'] / 1e9:.2f} GB, once the {stored / 1e9:.2f} GB that are stored")
    print("all metrics agree with the sweep that holds the model")
    each = statistics.median(measured["layers"])
    print(f"streamed {each:.3f} s a layer, median; in memory {resident_time / L:.3f} s a layer")


if __name__ == "__main__":
    print(json.dumps(sweep_limited(Path(sys.argv[1]), Path(sys.argv[2]))))

"""Loading 2 GB onto eight devices of two processes: neither ever holds more than its half and one tensor."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from headjax.config import ModelConfig, Rotary
from headjax.model import parameter_shapes
from headjax.parameters.converted import write_checkpoint

ROOT = Path(__file__).resolve().parents[1]
MIB = 2**20
# 8 layers of 256 MiB, and an embedding of 16: all but norms and biases is split over the eight devices.
CONFIG = ModelConfig(
    **{"family": "llama", "n_layers": 8, "n_heads": 16, "n_kv_heads": 16, "d_head": 128, "d_model": 2048},
    **{"d_mlp": 8192, "vocab_size": 2048, "max_positions": 16, "norm": "rms", "norm_eps": 1e-5},
    **{"rotary": Rotary(128, 10000.0), "activation": "silu", "gated_mlp": True},
    **{"parallel_residual": False, "tied_embeddings": True},
)
LOAD = """
import json, resource, sys
from pathlib import Path
import jax
from headjax.engine.mesh import make_mesh, start_processes

directory, address, number = sys.argv[1:]
start_processes(f"{address},2,{number}")
mesh = make_mesh({"model": 8})
from headjax import load_model

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

before = peak()
model = load_model(Path(directory), mesh=mesh)
own = sum(shard.data.nbytes for leaf in jax.tree.leaves(model) for shard in leaf.addressable_shards)
checksum = {layer: float(jax.jit(lambda w: w[layer].mean())(model.W_O)) for layer in (0, 7)}
print(json.dumps({"peak": peak() - before, "own": own, "checksum": checksum}))
"""


@pytest.mark.slow
def test_no_process_holds_more_than_its_shards_and_one_tensor(tmp_path: Path):
    shapes = parameter_shapes(CONFIG)

    def read_group(group) -> dict[str, np.ndarray]:
        own = shapes if group.layer is None else {name: shape[1:] for name, shape in shapes.items()}
        return {name: np.full(own[name], group.layer or 0, np.float32) for name in group.names}

    dtypes = {name: np.dtype(np.float32) for name in shapes}
    write_checkpoint(tmp_path / "model", CONFIG, dtypes, {"source": "synthetic", "files": {}}, read_group)
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        address = f"localhost:{listener.getsockname()[1]}"
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", LOAD, str(tmp_path / "model"), address, str(number)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    total = sum(4 * int(np.prod(shape)) for shape in shapes.values())
    largest = max(4 * int(np.prod(shape[1:])) for name, shape in shapes.items() if name.startswith("blocks."))
    assert total > 2**31
    for process in processes:
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        found = json.loads(output.splitlines()[-1])
        assert found["checksum"] == {"0": 0.0, "7": 7.0}
        assert found["own"] < 1.01 * total / 2
        # What Python, XLA and tensorstore themselves grow by while they load is within the 100 MiB.
        assert found["peak"] < found["own"] + largest + 100 * MIB, {
            name: found[name] / MIB for name in ("peak", "own")
        }

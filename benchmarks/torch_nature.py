"""Forward and backward passes of the Nature network in PyTorch, in a separate interpreter.

``benchmarks.host --sections nature`` starts this file: ``torch_nature.py BATCH STEPS THREADS``. It
imports nothing from this project. It prints ``{"compile_seconds": 0.0}`` or ``{"missing": ...}``,
then answers every line on standard input with ``{"seconds": ..., "gradient_steps": STEPS}``.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from typing import Any

ACTIONS = 18


def network_of(torch: Any) -> Any:
    """Return the network of Mnih et al. 2015 for 4 stacked frames of 84 x 84."""
    nn = torch.nn
    return nn.Sequential(
        nn.Conv2d(4, 32, 8, 4), nn.ReLU(),
        nn.Conv2d(32, 64, 4, 2), nn.ReLU(),
        nn.Conv2d(64, 64, 3, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(3_136, 512), nn.ReLU(),
        nn.Linear(512, ACTIONS),
    )  # fmt: skip


def main(batch_size: int, steps: int, threads: int) -> None:
    """Answer requests until standard input ends."""
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        print(json.dumps({"missing": str(error)}), flush=True)
        return
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = network_of(torch)
    frames = torch.randint(0, 256, (batch_size, 4, 84, 84), dtype=torch.uint8)
    actions = torch.randint(0, ACTIONS, (batch_size, 1))
    targets = torch.randn(batch_size)

    def step() -> None:
        network.zero_grad()
        q = network(frames.float() / 255).gather(1, actions)[:, 0]
        torch.nn.functional.smooth_l1_loss(q, targets).backward()

    step()
    print(json.dumps({"compile_seconds": 0.0}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        for _ in range(steps):
            step()
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "gradient_steps": steps}), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

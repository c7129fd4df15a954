"""The registry of techniques: what makes training fast, and by how much, measured.

To add a technique, write a function ``measure(effort) -> list[Result]`` and
``register`` it below.
"""

from __future__ import annotations

from benchmarks.techniques.family import (
    measure_distributional,
    measure_n_step,
    measure_pqn,
    measure_variant,
)
from benchmarks.techniques.parallel import measure_scaled
from benchmarks.techniques.registry import Technique, register
from benchmarks.techniques.training import (
    measure_batch,
    measure_clipping,
    measure_convolution,
    measure_cpu_threads,
    measure_device_loop,
    measure_precision,
    measure_vectorised,
)

_MATCHED = "CartPole-v1, E=10, K=1, M=1, B=128, MLP 120-84, whole iterations"

register(
    Technique(
        name="device-loop",
        principle="lax.scan over iterations: acting, replay and learning are one program",
        good_for="small networks and fast environments, where dispatch and transfers dominate",
        costs="no Python between iterations; logging and evaluation wait for the chunk's end",
        measured_on=_MATCHED,
        measure=measure_device_loop,
    )
)
register(
    Technique(
        name="vectorised-environments",
        principle="vmap over environments: one program steps E of them",
        good_for="throughput of acting; diverse data; it fills the device",
        costs="E times the state; larger steps of data between gradient steps",
        measured_on="acting alone (act, environment, ring), K=1, default network",
        measure=measure_vectorised,
    )
)
register(
    Technique(
        name="cpu-threads",
        principle="one thread for XLA on CPU: small operations are not handed from core to core",
        good_for="dense networks of up to some 2 million multiply-adds a batch; many runs side by "
        "side; --cpu-threads chooses so by itself",
        costs="large products use one core",
        measured_on=_MATCHED,
        measure=measure_cpu_threads,
    )
)
register(
    Technique(
        name="gradient-clipping",
        principle="by value bounds each element (it turns the gradient); by global norm scales "
        "a large one down; unit norm scales every one to length 1",
        good_for="stability under rare large errors; step lengths free of the reward's scale",
        costs="a pass over the gradient; by value changes its direction",
        measured_on=_MATCHED,
        measure=measure_clipping,
    )
)
register(
    Technique(
        name="batch-size",
        principle="one gradient of more rows: larger matrix products, the same overheads",
        good_for="rows learned from a second, less noise in the gradient",
        costs="fewer gradient steps a second; returns diminish when the device is full",
        measured_on="CartPole-v1, E=10, K=1, M=1, MLP 120-84, whole iterations",
        measure=measure_batch,
    )
)
register(
    Technique(
        name="n-step",
        principle="sum N rewards before the bootstrap, gathered when sampling",
        good_for="rewards that reach back N times as far in one update",
        costs="N times the gathers of flags and rewards; off-policy bias",
        measured_on=_MATCHED,
        measure=measure_n_step,
    )
)
register(
    Technique(
        name="double",
        principle="the online network chooses the bootstrap action, the target network values it",
        good_for="values that are not too high: fewer environment steps, not more a second",
        costs="one more forward pass of the next observations",
        measured_on="E=10, K=1, M=1, B=128, MLP 120-84 or MinAtar network, whole iterations",
        measure=measure_variant(double=True),
    )
)
register(
    Technique(
        name="prioritised-replay",
        principle="draw rows in proportion to their TD errors from a sum tree, and weigh them",
        good_for="sparse rewards and rare errors: fewer environment steps, not more a second",
        costs="the tree's draw and the writing of priorities at every gradient step",
        measured_on="E=10, K=1, M=1, B=128, MLP 120-84 or MinAtar network, whole iterations",
        measure=measure_variant(replay="prioritized"),
    )
)
register(
    Technique(
        name="distributional",
        principle="learn the distribution of returns: on 51 fixed atoms (C51), or by 32 quantiles "
        "(QR-DQN), drawn anew each time (IQN)",
        good_for="more to learn from each row: fewer environment steps, not more a second",
        costs="an output for each atom of each action; for IQN the head once for each quantile",
        measured_on="E=10, K=1, M=1, B=128, MLP 120-84 or MinAtar network, whole iterations",
        measure=measure_distributional,
    )
)
register(
    Technique(
        name="pqn",
        principle="no replay and no target network: Q(lambda) targets of the rows just acted, "
        "normalised layers, two passes in minibatches",
        good_for="many environments on one device; memory, of which a replay takes most",
        costs="each row is learned from twice and forgotten: more environment steps",
        measured_on="128 environments, 32 steps, 32 minibatches, 2 passes, MinAtar network; DQN "
        "with as many environments, gradient steps and rows of each",
        measure=measure_pqn,
    )
)
register(
    Technique(
        name="precision",
        principle="compute the network in bfloat16; parameters and losses stay float32",
        good_for="devices with bfloat16 matrix units; half the activations' memory",
        costs="8 bits of significand; slower where the device converts in software",
        measured_on="E=10, K=1, M=1, B=128, MLP 120-84 or MinAtar network, whole iterations",
        measure=measure_precision,
    )
)
register(
    Technique(
        name="convolution",
        principle="a convolution as shifted slices times a matrix, same parameters",
        good_for="convolutions inside a scan on CPU, which XLA runs without its fast kernels",
        costs="memory for the patches; on accelerators the built-in one may be faster",
        measured_on="Breakout-MinAtar, E=10, K=1, M=1, MinAtar network, whole iterations",
        measure=measure_convolution,
    )
)
register(
    Technique(
        name="data-parallel",
        principle="the same step on every device, on its own environments and replay; gradients "
        "averaged by an all-reduce, under shard_map or pmap",
        good_for="large batches and many environments; memory for replay grows with the devices",
        costs="an all-reduce for each gradient step, whose latency small networks do not hide",
        measured_on="one batch divided over 2 devices (virtual ones on CPU, sharing its cores)",
        measure=measure_scaled(
            "strong", ("setting", "D"), "1 device", "speed-up over 1", "gradient steps"
        ),
    )
)
register(
    Technique(
        name="communication",
        principle="fewer or smaller messages: accumulation, periodic averaging (local SGD), "
        "bfloat16, int8 and top-k with error feedback",
        good_for="slow links; averaging and accumulation also for latency",
        costs="accumulation: older gradients; averaging: replicas drift; compression: coding, and "
        "what is lost comes a step later",
        measured_on="one batch divided over 2 devices (virtual ones on CPU: memory is the link)",
        measure=measure_scaled(
            "communication",
            ("form", "setting", "D"),
            "float32 all-reduce",
            "speed-up",
            "rows learned from",
        ),
    )
)
register(
    Technique(
        name="model-parallel",
        principle="wide layers split over a model axis by the compiler, beside the data axis",
        good_for="networks whose parameters and optimiser do not fit, or are slow, on one device",
        costs="an all-reduce of activations in every layer pair",
        measured_on="CartPole-v1, MLP 4096-4096, B=64 (virtual devices on CPU)",
        measure=measure_scaled("model", ("data x model",), "1 x 1", "speed-up", "gradient steps"),
    )
)
register(
    Technique(
        name="population",
        principle="P learners in one program: stepped together by vmap, or one after the other by "
        "map, and divided over devices",
        good_for="sweeps and error bars; small learners that leave the device idle",
        costs="P times the memory; every learner runs as long as the longest",
        measured_on="CartPole-v1, E=10, B=128, MLP 120-84; on CPU over one and two virtual devices",
        measure=measure_scaled(
            "population",
            ("P", "how", "devices"),
            "one by one",
            "over one by one",
            "gradient steps of all",
        ),
    )
)

"""Table of the techniques. Importing this module registers them.

To add a technique, write a function ``measure(effort) -> list[Result]`` and register it below.
"""

from __future__ import annotations

from benchmarks.techniques.family import (
    measure_distributional,
    measure_n_step,
    measure_pqn,
    measure_torsos,
    measure_variant,
)
from benchmarks.techniques.host import (
    measure_host_environments,
    measure_overlap,
    measure_workers,
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

_MATCHED = "complete iterations on CartPole-v1: E=10, K=1, M=1, B=128, MLP 120-84"
_TWO_NETWORKS = (
    "complete iterations: E=10, K=1, M=1, B=128, MLP 120-84 on CartPole-v1 and the MinAtar network "
    "on Breakout-MinAtar"
)

register(
    Technique(
        name="device-loop",
        principle="lax.scan over iterations: acting, replay and learning are one compiled program",
        good_for="small networks and fast environments, where dispatch and transfers dominate",
        costs="no Python code between iterations; logging and evaluation wait for the end of a "
        "chunk",
        measured_on=_MATCHED,
        measure=measure_device_loop,
    )
)
register(
    Technique(
        name="vectorised-environments",
        principle="vmap over environments: one program steps E environments",
        good_for="throughput of acting, full use of the device, and less correlated data",
        costs="E times the environment state; more rows between gradient steps",
        measured_on="acting only (network, environment, replay): K=1, default network",
        measure=measure_vectorised,
    )
)
register(
    Technique(
        name="cpu-threads",
        principle="one XLA thread on CPU: small operations are not distributed over cores",
        good_for="dense networks below 2 million multiply-adds per batch, and several runs on one "
        "machine; jaxdqn run chooses it automatically",
        costs="large matrix products use one core only",
        measured_on=_MATCHED,
        measure=measure_cpu_threads,
    )
)
register(
    Technique(
        name="gradient-clipping",
        principle="clip each element (by value), scale down gradients above a norm (by global "
        "norm), or scale every gradient to norm 1 (unit norm)",
        good_for="stability under rare large errors; unit norm also makes the step length "
        "independent of the reward scale",
        costs="one pass over the gradient; clipping by value changes its direction",
        measured_on=_MATCHED,
        measure=measure_clipping,
    )
)
register(
    Technique(
        name="batch-size",
        principle="more rows per gradient step: larger matrix products, the same overhead",
        good_for="rows learned per second, and gradients with less noise",
        costs="fewer gradient steps per second; no further gain once the device is fully used",
        measured_on="complete iterations on CartPole-v1: E=10, K=1, M=1, MLP 120-84",
        measure=measure_batch,
    )
)
register(
    Technique(
        name="n-step",
        principle="sum N rewards before the bootstrap; the sum is computed when sampling",
        good_for="sparse or delayed rewards, which propagate N times as far per update",
        costs="N times the gathers of flags and rewards; off-policy bias",
        measured_on=_MATCHED,
        measure=measure_n_step,
    )
)
register(
    Technique(
        name="double",
        principle="the online network selects the bootstrap action, the target network evaluates "
        "it",
        good_for="less overestimation of values: fewer environment steps to a result, not more "
        "steps per second",
        costs="one more forward pass over the next observations",
        measured_on=_TWO_NETWORKS,
        measure=measure_variant(double=True),
    )
)
register(
    Technique(
        name="prioritised-replay",
        principle="sample rows in proportion to their TD errors from a sum tree; importance "
        "weights correct the bias",
        good_for="sparse rewards and rare errors: fewer environment steps to a result, not more "
        "steps per second",
        costs="sampling from the tree and writing priorities at every gradient step",
        measured_on=_TWO_NETWORKS,
        measure=measure_variant(replay="prioritized"),
    )
)
register(
    Technique(
        name="distributional",
        principle="learn the distribution of returns: probabilities of 51 fixed atoms (C51), 32 "
        "fixed quantiles (QR-DQN), or 32 quantiles sampled at each update (IQN)",
        good_for="a richer learning signal: fewer environment steps to a result, not more steps "
        "per second",
        costs="one output per action and atom; IQN evaluates its head once per quantile",
        measured_on=_TWO_NETWORKS,
        measure=measure_distributional,
    )
)
register(
    Technique(
        name="pqn",
        principle="no replay and no target network: Q(lambda) targets from the latest rows, layer "
        "normalisation, two epochs of minibatches",
        good_for="many environments on one device; memory, since there is no replay",
        costs="each row is used twice and discarded: more environment steps to a result",
        measured_on="Breakout-MinAtar, MinAtar network, 128 environments, 32 steps, 32 "
        "minibatches, 2 epochs; baseline: DQN with equal rows and gradient steps per iteration",
        measure=measure_pqn,
    )
)
register(
    Technique(
        name="precision",
        principle="compute the network in bfloat16; parameters and losses stay in float32",
        good_for="devices with bfloat16 matrix units; half the memory for activations",
        costs="8 bits of precision; slower on devices that emulate bfloat16",
        measured_on=_TWO_NETWORKS,
        measure=measure_precision,
    )
)
register(
    Technique(
        name="convolution",
        principle="compute a convolution as one matrix product of patches, with the same "
        "parameters",
        good_for="convolutions inside a scan on CPU, where XLA does not use its fast kernels",
        costs="memory for the patches; on accelerators XLA's convolution may be faster",
        measured_on="complete iterations on Breakout-MinAtar: E=10, K=1, M=1, MinAtar network",
        measure=measure_convolution,
    )
)
register(
    Technique(
        name="data-parallel",
        principle="every device runs the same step on its own environments and replay; an "
        "all-reduce averages the gradients, under shard_map or pmap",
        good_for="large batches and many environments; replay memory grows with the devices",
        costs="one all-reduce per gradient step; its latency dominates for small networks",
        measured_on="one batch divided over 2 devices; on CPU these are virtual and share the "
        "cores",
        measure=measure_scaled(
            "strong", ("setting", "D"), "1 device", "speed-up over 1", "gradient steps"
        ),
    )
)
register(
    Technique(
        name="communication",
        principle="fewer or smaller messages: gradient accumulation, periodic averaging (local "
        "SGD), and compression to bfloat16, int8 or top-k with error feedback",
        good_for="slow links; accumulation and averaging also for links with high latency",
        costs="accumulation: fewer updates; averaging: replicas drift apart; compression: encoding "
        "time, and the rounding error is applied one step later",
        measured_on="one batch divided over 2 devices; on CPU these are virtual and their link is "
        "memory",
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
        name="torsos",
        principle="residual convolutions (IMPALA), wider, pooled to 6 x 6, with spectral norm; or "
        "products of two convolutions (Hadamax)",
        good_for="scores on frames: BTR and PQN-Hadamax report several times those of the Nature "
        "network",
        costs="many times the multiply-adds of the Nature network",
        measured_on="complete iterations on frames of 84x84: E=10, K=1, M=1, B=32, stacks of 4",
        measure=measure_torsos,
    )
)
register(
    Technique(
        name="model-parallel",
        principle="the compiler partitions wide layers over the model axis of a data x model mesh",
        good_for="networks too large or too slow for one device",
        costs="an all-reduce of activations for every pair of layers",
        measured_on="CartPole-v1, MLP 4096-4096, B=64; on CPU the devices are virtual",
        measure=measure_scaled("model", ("data x model",), "1 x 1", "speed-up", "gradient steps"),
    )
)
register(
    Technique(
        name="population",
        principle="P learners in one program, by vmap (all at once) or by lax.map (one after "
        "another), divided over devices",
        good_for="sweeps and several seeds; small learners that do not fill the device",
        costs="P times the memory; the program runs until the last learner is done",
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
_ON_HOST = "complete iterations of environments on the host: E=8 of Gymnasium's CartPole-v1"
register(
    Technique(
        name="host-overlap",
        principle="environments on the host step while the device takes the gradient steps of the "
        "iteration before",
        good_for="simulators that run on the CPU, most where acting and learning take equally long",
        costs="acting on parameters that are one iteration old",
        measured_on=f"{_ON_HOST}, K=4 B=32 M=1, MLP 64-64; and K=8 B=256 M=8, MLP 512-512 with "
        "5 ms added to a vector step",
        measure=measure_overlap,
    )
)
register(
    Technique(
        name="host-environments",
        principle="the device acts for several environments on the host in one call",
        good_for="fast simulators, where the call takes longer than a step",
        costs="a vector step waits for the slowest environment",
        measured_on="Gymnasium's CartPole-v1 on the host, K=4, B=32, one gradient step a row",
        measure=measure_host_environments,
    )
)
register(
    Technique(
        name="host-processes",
        principle="every environment on the host steps in its own process",
        good_for="simulators that take more than about a millisecond a step",
        costs="an exchange between processes at every step",
        measured_on="steps of Gymnasium's CartPole-v1 only, one environment for each core; also "
        "with 1 ms added to a step",
        measure=measure_workers,
    )
)

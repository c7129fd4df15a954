"""Flags of ``jaxdqn run``."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import tyro

from jaxdqn.config.option import option
from jaxdqn.config.options import Options


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(Options):
    """Flags of ``jaxdqn run``: the options of the run, and flags of the process."""

    out: str | None = option(None, group="Run", everyday=True)
    """Run directory, new or empty; by default runs/PRESET-ENV-sSEED-TIME."""
    resume: bool = option(False, group="Run", everyday=True)
    """Resume the run in --out from its newest checkpoint, or start one if there is none. Without a
    PRESET, the configuration of the run in --out gives the defaults."""
    extend: Literal["keep", "stretch"] | None = option(None, group="Run")
    """With --resume and another --total-rows: keep the schedules over the former budget, after
    which they stay at their final values, or stretch them over the new budget, as if the run had
    started with it. The default is stretch."""
    from_: Annotated[str | None, tyro.conf.arg(name="from")] = option(None, group="Run")
    """Take the defaults from a config.json instead of a preset, to repeat a run."""
    protocol: Literal["minatar", "gymnax"] | None = option(None, group="Run")
    """Variant of a MinAtar game. minatar: sticky_actions 0.1 and full_action_set, as published; the
    default of every preset. gymnax: neither, the default of gymnax."""
    environment: str | None = option(None, group="Run")
    """Your own environment, as MODULE:FUNCTION or FILE.py:FUNCTION, instead of --env. The function
    takes no arguments and returns an Environment. --network, --optimizer, --replay and --loss take
    such references too. The current directory is importable; the run directory records the
    references."""
    explore: str | None = option(None, group="Exploration")
    """Your own exploration, as MODULE:FUNCTION, a function (key, q, exploration) -> (actions,
    behaviour_prob)."""
    learning: str | None = option(None, group="Algorithm")
    """Your own algorithm, as MODULE:FUNCTION, a function (config, agent, collectives) ->
    Learning."""
    agent: str | None = option(None, group="Algorithm")
    """Your own agent, as MODULE:FUNCTION, a function (config, spec, collectives) -> Agent."""
    tensorboard: bool = option(False, group="Monitoring")
    """Write event files for TensorBoard into RUN/tensorboard; needs pip install
    "jaxdqn[monitor]"."""
    prometheus: str | None = option(None, group="Monitoring")
    """Serve the newest metrics for Prometheus at PORT of the loopback interface, or at HOST:PORT;
    needs pip install "jaxdqn[monitor]". docs/monitoring/ has a dashboard for Grafana."""
    wandb: bool = option(False, group="Monitoring")
    """Send the metrics to Weights & Biases; needs pip install "jaxdqn[wandb]". WANDB_PROJECT,
    WANDB_MODE and other variables of wandb apply."""
    profile: int | None = option(None, group="Monitoring")
    """Write a trace of this many chunks, after the first one, into RUN/profile; see
    docs/monitoring.md."""
    engine: Literal["jit", "ray"] | None = option(None, group="Ray")
    """jit: act and learn in one compiled program. ray: asynchronous actors and a sharded replay in
    separate processes (Ape-X), which needs --replay prioritized; see docs/ray.md. The default is
    jit; with --resume it is the engine of the run, with its arguments."""
    actors: str | None = option(None, group="Ray")
    """Number of actors, over which the environments are divided; 1 by default. 2..8 is elastic: the
    run needs 2, and has up to 8 while the cluster has resources for them."""
    replay_shards: int | None = option(None, group="Ray")
    """Number of processes that hold the replay, at most --actors; 1 by default."""
    learners: int | None = option(None, group="Ray")
    """Number of learners of a parameter server, each in its own process; 1 by default."""
    server_mode: Literal["sync", "async"] | None = option(None, group="Ray")
    """Learn by a parameter server (Gorila). sync: a gradient step takes the mean of the gradients
    of all learners, which divide the batch. async: each learner computes the gradient of a whole
    batch, and the server applies the gradients as they come. --compression compresses these
    gradients."""
    max_staleness: int | None = option(None, group="Ray")
    """With --server-mode async: maximum age of a gradient in gradient steps; drop older ones."""
    staleness_discount: float | None = option(None, group="Ray")
    """With --server-mode async: exponent P. The learning rate of a gradient that is S gradient
    steps old is multiplied by (1 + S)^-P. 0 by default."""
    block_rows: int | None = option(None, group="Ray")
    """Rows that an actor sends at a time, rounded down to complete iterations. By default 512, and
    fewer for slow environments."""
    parameters_every: int | None = option(None, group="Ray")
    """Number of blocks after which an actor gets the newest parameters; 1 by default."""
    initial_priorities: Literal["actor", "max"] | None = option(None, group="Ray")
    """Priority of a new row. actor: |TD error| computed by its actor (Ape-X). max: the maximum so
    far. By default actor, and max with a distributional loss."""
    cpus_per_actor: float | None = option(None, group="Ray")
    """CPUs that Ray reserves for an actor; 1 by default. Fractions are allowed."""
    cpus_per_shard: float | None = option(None, group="Ray")
    """CPUs that Ray reserves for a shard."""
    cpus_per_learner: float | None = option(None, group="Ray")
    """CPUs that Ray reserves for a learner of a parameter server."""
    gpus_per_learner: float | None = option(None, group="Ray")
    """GPUs that Ray reserves for a learner of a parameter server; at most 1; with 0.5 two learners
    share a GPU. Without it learners run on the CPU."""
    ray_address: str | None = option(None, group="Ray")
    """HOST:PORT of a running Ray cluster, or auto. By default the run starts a cluster on this
    machine, which listens on the loopback interface only."""
    explain: bool = option(False, group="Run")
    """Print the shapes, bytes and schedules of the run, and exit without allocating memory."""
    debug: bool = option(False, group="Run")
    """Run a few small iterations without jit, on one device, and write no files. print and
    breakpoint() work in your own parts, and an error names the first function with an output that
    is not finite. See docs/debugging.md."""
    cpu_threads: int | None = option(None, group="Devices")
    """Number of threads of XLA on CPU. By default 1 for small dense networks, where it is faster,
    and otherwise one per core."""
    cpu_dispatch: Literal["auto", "async", "sync"] = option("auto", group="Devices")
    """Run programs on the CPU in a thread of JAX (async), or in the thread that calls them (sync).
    By default sync if --env names an environment on the host and there is one device, which is
    faster, and async otherwise."""
    mesh: str | None = option(None, group="Devices")
    """Layout of the devices: data=2,model=3 is 2 replicas, each split over 3 devices. Replaces
    --devices and --model-devices."""
    virtual_devices: int | None = option(None, group="Devices")
    """Number of virtual CPU devices to create, to try several devices on one machine."""
    memory_fraction: float | None = option(None, group="Devices")
    """Fraction of GPU memory that JAX allocates at its start (0.75 by default). A smaller fraction
    lets several processes share a GPU; see docs/sharing.md."""
    coordinator: str | None = option(None, group="Hosts")
    """HOST:PORT of process 0, for a run over several processes. Start each process with this flag
    and the next two; --devices counts the devices of all processes. See docs/cluster.md."""
    num_processes: int | None = option(None, group="Hosts")
    """Number of processes."""
    process_id: int | None = option(None, group="Hosts")
    """Index of this process, from 0; process 0 writes the files."""
    multi_host: bool = option(False, group="Hosts")
    """Let JAX detect the other processes, on Slurm, Kubernetes and Cloud TPU; replaces the three
    flags above."""
    heartbeat_seconds: int = option(10, group="Hosts")
    """Seconds without a heartbeat after which a process counts as lost and the others exit; at most
    30."""
    initialization_seconds: int = option(30, group="Hosts")
    """Seconds that the processes wait for one another at the start."""

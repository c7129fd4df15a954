"""Set up JAX before a command uses it: CPU threads, devices, compilation cache."""

from __future__ import annotations

import itertools
import os

from jaxdqn.config.config import Config

SMALL = 2**21
"""Multiply-adds of a batch; measured on 2 cores: with 1.3 million one thread is 1.7 times as
fast as two, with 2.1 million as fast, with 8.5 million 0.7 times."""


def use_cpu_threads(config: Config, asked: int | None) -> None:
    """Settle how many threads XLA uses on CPU; call before JAX computes anything.

    By default one for small dense networks: their operations take microseconds, which
    handing them from core to core would double (``jaxdqn compare --only
    cpu-threads``). An ``NPROC`` that is set already counts for more.

    Raises:
        ValueError: if fewer than one is asked for.
    """
    if asked is not None and asked < 1:
        raise ValueError(f"cpu_threads={asked}: must be at least 1")
    if asked is None and config.devices == 1 and is_small(config):
        asked = 1
    if asked is not None:
        os.environ.setdefault("NPROC", str(asked))


def set_up_devices(virtual: int | None, memory_fraction: float | None) -> None:
    """Settle what devices JAX finds; call before it computes anything.

    Args:
        virtual: CPU devices to make.
        memory_fraction: share of a GPU's memory to take at the start.

    Raises:
        ValueError: if a value is out of its range.
    """
    if virtual is not None and virtual < 1:
        raise ValueError(f"virtual_devices={virtual}: must be at least 1")
    if memory_fraction is not None:
        if not 0 < memory_fraction <= 1:
            raise ValueError(f"memory_fraction={memory_fraction}: must be above 0 and at most 1")
        os.environ["XLA_CLIENT_MEM_FRACTION"] = str(memory_fraction)
        # Its former name, beside which XLA refuses the new one.
        os.environ.pop("XLA_PYTHON_CLIENT_MEM_FRACTION", None)
    if virtual is not None:
        import jax

        # Where there are accelerators too, the CPU's devices are what was asked for.
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", virtual)


def devices_of_mesh(mesh: str) -> dict[str, int]:
    """Return the fields of a configuration that a mesh such as ``data=2,model=2`` stands for.

    Raises:
        ValueError: if it is not of that form.
    """
    sizes: dict[str, int] = {}
    for part in mesh.split(","):
        axis, _, size = part.partition("=")
        if axis not in ("data", "model") or not size.isdecimal() or int(size) < 1:
            raise ValueError(
                f"mesh={mesh!r}: must be data=D,model=M with whole numbers of at least 1"
            )
        if axis in sizes:
            raise ValueError(f"mesh={mesh!r}: must name {axis} once")
        sizes[axis] = int(size)
    model = sizes.get("model", 1)
    return {"devices": sizes.get("data", 1) * model, "model_devices": model}


def check_virtual_devices(virtual: int | None, config: Config) -> None:
    """Refuse to make more devices of the CPU than a run uses.

    Raises:
        ValueError: naming both.
    """
    if virtual is not None and virtual > config.devices:
        raise ValueError(
            f"virtual_devices={virtual}: must be at most devices={config.devices}, which the run "
            f"uses; to use them say --devices {virtual}"
        )


def is_small(config: Config) -> bool:
    """Say whether a batch is fewer multiply-adds in the hidden layers than threads pay for."""
    convolutions = config.network in ("minatar", "nature") or config.env.endswith("-MinAtar")
    if convolutions and config.network != "mlp":
        return False
    weights = sum(a * b for a, b in itertools.pairwise(config.hidden_sizes))
    if config.loss == "implicit_quantile" and config.hidden_sizes:
        weights += config.quantiles * config.hidden_sizes[-1] ** 2  # the head, once for each
    return weights * max(config.batch_per_device, config.envs_per_device) < SMALL


def keep_compiled_programs() -> None:
    """Keep compiled programs on disk, so that the next start is faster.

    They are kept in ``$JAX_COMPILATION_CACHE_DIR``, or in the user's cache directory if that can
    be written.
    """
    import jax

    from jaxdqn.run.compilation_cache import use_persistent_cache

    use_persistent_cache()
    # The programs of a run are few and each is worth keeping.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

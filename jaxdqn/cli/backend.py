"""Configuration of JAX before its first use: CPU threads, devices, compilation cache."""

from __future__ import annotations

import itertools
import os

from jaxdqn.config.config import Config
from jaxdqn.config.host_envs import is_host_env
from jaxdqn.config.options import CONVOLUTIONS
from jaxdqn.monitoring.output import warn

SMALL = 2**21
"""Number of multiply-adds per batch below which one thread is faster than two. Measured on 2 cores:
one thread is 1.7 times as fast as two with 1.3 million, 1.0 times with 2.1 million, and 0.7 times
with 8.5 million."""


def use_cpu_threads(config: Config, threads: int | None) -> None:
    """Set the number of threads of XLA on CPU; call before JAX computes anything.

    The default is one thread for small dense networks on one device. Their operations take
    microseconds, and dividing them between cores would double that time (``jaxdqn compare --only
    cpu-threads``). The environment variable ``NPROC`` takes precedence.

    Raises:
        ValueError: if ``threads`` is below 1.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"cpu_threads={threads}: must be at least 1")
    if threads is None and config.devices == 1 and is_small(config):
        threads = 1
    if threads is not None:
        os.environ.setdefault("NPROC", str(threads))


def set_up_devices(virtual: int | None, memory_fraction: float | None) -> None:
    """Set the devices that JAX finds and their memory; call before JAX computes anything.

    Args:
        virtual: number of virtual CPU devices to create.
        memory_fraction: fraction of the memory of a GPU to allocate at the start.

    Raises:
        ValueError: if a value is out of range.
    """
    if virtual is not None and virtual < 1:
        raise ValueError(f"virtual_devices={virtual}: must be at least 1")
    if memory_fraction is not None:
        if not 0 < memory_fraction <= 1:
            raise ValueError(f"memory_fraction={memory_fraction}: must be above 0 and at most 1")
        os.environ["XLA_CLIENT_MEM_FRACTION"] = str(memory_fraction)
        # XLA rejects the new name if the former one is set too.
        os.environ.pop("XLA_PYTHON_CLIENT_MEM_FRACTION", None)
    if virtual is not None:
        import jax

        # Without this, JAX would choose an accelerator over the virtual devices.
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", virtual)


def use_cpu_dispatch(config: Config, dispatch: str = "auto", *, by_name: bool = True) -> None:
    """Choose the thread in which JAX runs programs on the CPU; call before JAX computes anything.

    With ``sync`` a program runs in the calling thread, and the call returns when the program has
    finished. That saves the exchange between two threads, which takes longer than choosing the
    actions of a few environments with a small network. With environments on the host, training is
    then 1.1 to 1.6 times as fast (``python -m benchmarks.host --sections dispatch``).

    Args:
        config: configuration of the run.
        dispatch: ``async``, ``sync``, or ``auto``: ``sync`` with an environment on the host and
            one device, and otherwise the default of JAX.
        by_name: True if ``config.env`` names the environment that this process steps.
    """
    if dispatch == "auto":
        if not by_name or not is_host_env(config.env) or config.devices > 1:
            return
        dispatch = "sync"
    import jax

    jax.config.update("jax_cpu_enable_async_dispatch", dispatch == "async")


def devices_of_mesh(mesh: str) -> dict[str, int]:
    """Return the options that correspond to a mesh such as ``data=2,model=2``.

    Raises:
        ValueError: if ``mesh`` does not have that form.
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
    """Check that a run uses all virtual devices.

    Raises:
        ValueError: if there are more virtual devices than the run uses.
    """
    if virtual is not None and virtual > config.devices:
        raise ValueError(
            f"virtual_devices={virtual}: must be at most devices={config.devices}, which the run "
            f"uses; to use all of them add --devices {virtual}"
        )


def is_small(config: Config) -> bool:
    """Return whether one thread is faster: dense layers with fewer than ``SMALL`` multiply-adds."""
    minatar = config.network == "auto" and config.env.endswith("-MinAtar")
    if minatar or config.network in CONVOLUTIONS:
        return False
    weights = sum(a * b for a, b in itertools.pairwise(config.hidden_sizes))
    if config.loss == "implicit_quantile" and config.hidden_sizes:
        weights += config.quantiles * config.hidden_sizes[-1] ** 2  # the head, for each quantile
    return weights * max(config.batch_per_device, config.envs_per_device) < SMALL


def start_backend() -> None:
    """Start JAX's backend for a command that computes little, and allow all transfers.

    ``JAX_TRANSFER_GUARD=disallow`` is meant for the training loop; other commands often convert
    scalars and keys.

    Raises:
        ValueError: if no backend can be started.
    """
    import jax

    from jaxdqn.parallel.platforms import check_platforms

    jax.config.update("jax_transfer_guard", "allow")
    check_platforms()


def keep_compiled_programs() -> None:
    """Cache compiled programs on disk, so that later starts are faster.

    The directory is ``$JAX_COMPILATION_CACHE_DIR`` if it is set, otherwise a directory in the
    user's cache if this is writable.
    """
    import jax

    from jaxdqn.run.compilation_cache import lacks_directory, use_persistent_cache

    use_persistent_cache()
    if lacks_directory():
        warn(
            "no compilation cache: neither XDG_CACHE_HOME nor HOME names a directory that can be "
            "written; every process compiles its programs"
        )
    # A run compiles few programs, and each is worth caching.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

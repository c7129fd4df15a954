"""Export the policy of a run directory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxdqn.envs.vector.base import HostEnvironment
from jaxdqn.export.distill import distill, read_replay
from jaxdqn.export.measure import agreement, mean_return
from jaxdqn.export.onnx import require_converter, write_onnx
from jaxdqn.export.policy import load_run
from jaxdqn.export.quantize import DTYPES, restore
from jaxdqn.export.serialized import FlatPolicy, Policy, flatten, write_policy
from jaxdqn.types import Environment

FORMATS = ("stablehlo", "onnx")
_EPISODES = 100
_OBSERVATIONS = 10_000


def export_policy(
    run: str | os.PathLike[str],
    to: str | os.PathLike[str],
    which: str = "best",
    *,
    format: str = "stablehlo",
    quantize: str = "float32",
    distill_to: Sequence[int] | None = None,
    episodes: int = _EPISODES,
    environment: Environment | HostEnvironment | str | None = None,
    network: Any = None,
    agent: Any = None,
) -> dict[str, Any]:
    """Write the greedy policy of a run into a directory that can be used without jaxdqn.

    The exported policy handles masks of legal actions, frame stacks and the recurrent carry.
    ``load_policy.py`` in the directory loads it.

    Args:
        run: run directory.
        to: directory to create.
        which: ``best`` or ``last`` parameters, see ``load_policy``.
        format: ``stablehlo``, which needs jax and flatbuffers to run, or ``onnx``, which needs
            onnxruntime instead of JAX. Writing ``onnx`` needs the extra ``onnx``.
        quantize: dtype in which kernels are stored: float32, bfloat16, or int8 with a scale for
            each output channel.
        distill_to: widths of dense layers. If given, a smaller network with these layers is
            trained on the Q-values of the policy, over the replay in the run's newest checkpoint,
            and exported.
        episodes: number of greedy episodes for the returns of a quantised or distilled policy and
            of the original.
        environment: custom environment, see ``load_policy``.
        network: custom network, see ``load_policy``.
        agent: custom agent, see ``load_policy``.

    Returns:
        The measurements, which ``policy.json`` also contains: ``weight_bytes``; for ONNX
        ``model_bytes``, the size of ``policy.onnx``; with ``quantize``
        or ``distill_to`` also ``original_weight_bytes``, ``action_agreement`` over 10 000
        observations, ``return_mean`` and ``original_return_mean`` with their standard errors.

    Raises:
        ValueError: if ``load_policy`` raises it, if an argument is invalid, if ``to`` is in use or
            cannot be written, or if the network cannot be converted to the format.
    """
    to = Path(to)
    check_target(to)
    check_quantize(quantize)
    _check_arguments(format, distill_to, episodes)
    own = {"environment": environment, "network": network, "agent": agent}
    config, trainer, params = load_run(run, which, **own)
    original = Policy(trainer.agent, trainer.environment.spec, config.frame_stack, params)
    policy = original
    if distill_to is not None:
        policy = distill(original, config, read_replay(run, which, **own), distill_to)
    flat = flatten(policy, quantize)
    record: dict[str, Any] = {
        "format": format,
        "quantize": quantize,
        "weight_bytes": flat.quantized.bytes,
    }
    if distill_to is not None:
        record["distill_to"] = list(distill_to)
    if quantize != "float32" or distill_to is not None:
        record |= _compare(original, quantized(policy, flat), trainer.environment, episodes)
        record["original_weight_bytes"] = flatten(original).quantized.bytes
    try:
        about = {"run": os.fspath(run), "which": which, **record}
        if format == "onnx":
            record |= write_onnx(to, policy, flat, about)
        else:
            write_policy(to, policy, flat, about)
    except OSError as error:
        raise ValueError(f"to={str(to)!r}: must be writable: {error.strerror}") from error
    return record


def _check_arguments(format: str, distill_to: Sequence[int] | None, episodes: int) -> None:
    """Raise a ValueError for an invalid argument, or if the converter to ONNX is missing."""
    if format not in FORMATS:
        raise ValueError(f"format={format!r}: must be one of {', '.join(FORMATS)}")
    if distill_to is not None and not (distill_to and min(distill_to) >= 1):
        raise ValueError(f"distill_to={distill_to!r}: must be one or more widths of at least 1")
    if format == "onnx":
        require_converter()
    if episodes < 2:
        raise ValueError(f"episodes={episodes}: must be at least 2")


def quantized(policy: Policy, flat: FlatPolicy) -> Policy:
    """Return the policy with parameters that are dequantised from its stored weights."""
    return policy._replace(params=restore(flat.quantized.layout, list(flat.weights)))


def _compare(policy: Policy, other: Policy, environment: Any, episodes: int) -> dict[str, Any]:
    """Return the action agreement of two policies, and their returns with the same seed."""
    before = mean_return(policy, environment, episodes)
    after = mean_return(other, environment, episodes)
    return {
        "action_agreement": agreement(policy, other, environment, _OBSERVATIONS),
        "return_mean": after.mean,
        "return_standard_error": after.standard_error,
        "original_return_mean": before.mean,
        "original_return_standard_error": before.standard_error,
        "episodes": episodes,
    }


def check_quantize(quantize: str) -> None:
    """Raise a ValueError if the dtype of weights is unknown."""
    if quantize not in DTYPES:
        raise ValueError(f"quantize={quantize!r}: must be one of {', '.join(DTYPES)}")


def check_target(to: Path) -> None:
    """Raise a ValueError unless ``to`` can be created or is an empty directory."""
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ValueError(f"to={str(to)!r}: must be a new or an empty directory")

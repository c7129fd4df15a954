"""Export of policies as StableHLO, to run with jax and flatbuffers and without jaxdqn.

The directory contains the program ``policy.stablehlo``, for CPU, CUDA and TPU and any batch size;
``weights.npz``; ``policy.json`` with shapes and measurements; and ``load_policy.py``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdqn.envs.frame_stack import initial_frames, observed, push_frame
from jaxdqn.export import loader
from jaxdqn.export.quantize import Quantized, quantize, restore
from jaxdqn.types import Agent, Array, EnvSpec, Params, PyTree

PLATFORMS = ("cpu", "cuda", "tpu")
PROGRAM, WEIGHTS, ABOUT, LOADER = (
    "policy.stablehlo", "weights.npz", "policy.json", "load_policy.py",
)  # fmt: skip


class Policy(NamedTuple):
    """Greedy policy."""

    agent: Agent
    spec: EnvSpec
    frame_stack: int
    params: Params


class FlatPolicy(NamedTuple):
    """Policy whose inputs and outputs are lists of arrays."""

    act: Callable[..., tuple[Array, list[Array]]]
    """``act(weights, state, obs[B, O], first[B], masks) -> (actions[B], state)``; ``masks`` is
    empty, or one mask [B, A]."""
    weights: list[np.ndarray]
    initial: list[np.ndarray]
    """State before the first observation, leaves [1, ...]: frames and recurrent carry."""
    quantized: Quantized


def flatten(policy: Policy, quantization: str = "float32") -> FlatPolicy:
    """Convert a policy to a function of lists of arrays.

    Args:
        policy: policy to flatten.
        quantization: dtype of the stored weights, one of ``jaxdqn.export.quantize.DTYPES``.
    """
    agent = policy.agent
    quantized = quantize(policy.params, quantization)
    frames = _no_frames(policy)
    carry = jax.tree.map(np.asarray, agent.initial_carry(1))
    initial, structure = jax.tree.flatten((frames, carry))

    def act(
        weights: list[Array], state: list[Array], obs: Array, first: Array, masks: list[Array]
    ) -> tuple[Array, list[Array]]:
        params = restore(quantized.layout, weights)
        frames, carry = jax.tree.unflatten(structure, state)
        frames = push_frame(frames, obs, first)
        key = jax.random.key(0)
        actions, carry, _ = agent.act(
            key, params, carry, observed(frames, obs), first, None, *masks
        )
        return actions, jax.tree.leaves((frames, carry))

    return FlatPolicy(act, quantized.weights, [np.asarray(leaf) for leaf in initial], quantized)


def _no_frames(policy: Policy) -> PyTree:
    """Return the initial frame stack: zeros [1, O, S], or empty without frame stacks."""
    spec = policy.spec
    obs = np.zeros((1, *spec.obs_shape), spec.obs_dtype)
    return jax.tree.map(np.asarray, initial_frames(jax.numpy.asarray(obs), policy.frame_stack))


def abstract_inputs(flat: FlatPolicy, spec: EnvSpec, batch: Any) -> tuple[Any, ...]:
    """Return the shapes and dtypes of the arguments of ``FlatPolicy.act`` for a batch size."""

    def batched(shape: Sequence[int], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, *shape), dtype)

    weights = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in flat.weights]
    state = [batched(leaf.shape[1:], leaf.dtype) for leaf in flat.initial]
    masks = [batched((spec.num_actions,), np.bool_)] if spec.masked else []
    obs = batched(spec.obs_shape, spec.obs_dtype)
    return weights, state, obs, batched((), np.bool_), masks


def serialize(flat: FlatPolicy, spec: EnvSpec) -> bytes:
    """Serialise the program of a policy for ``PLATFORMS`` and a symbolic batch size.

    Raises:
        ValueError: if the network cannot be traced with a symbolic batch size.
    """
    (batch,) = jax.export.symbolic_shape("b")
    inputs = abstract_inputs(flat, spec, batch)
    try:
        exported = jax.export.export(jax.jit(flat.act), platforms=PLATFORMS)(*inputs)
    except Exception as error:  # errors of tracing, including errors of a custom network
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"network: must be traceable with a symbolic batch size to be exported: {reason}"
        ) from error
    return bytes(exported.serialize())


def write_policy(directory: Path, policy: Policy, flat: FlatPolicy, record: Any) -> None:
    """Write a policy, its weights, its description and its loader into a new directory.

    Args:
        directory: directory to create.
        policy: policy to write.
        flat: the same policy, converted by ``flatten``.
        record: additional JSON values for ``policy.json``.

    Raises:
        OSError: if the directory cannot be written.
    """
    program = serialize(flat, policy.spec)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / PROGRAM).write_bytes(program)
    arrays = {f"w{index}": leaf for index, leaf in enumerate(flat.weights)}
    arrays |= {f"s{index}": leaf for index, leaf in enumerate(flat.initial)}
    np.savez(directory / WEIGHTS, allow_pickle=False, **arrays)
    write_about(directory, policy.spec, flat, "stablehlo", record)


def write_about(directory: Path, spec: EnvSpec, flat: FlatPolicy, format: str, record: Any) -> None:
    """Write ``load_policy.py``, and ``policy.json`` with the shapes of inputs and ``record``."""
    source = Path(loader.__file__).read_text(encoding="utf-8")
    (directory / LOADER).write_text(source, encoding="utf-8")
    about = {
        "format": format,
        "obs_shape": list(spec.obs_shape),
        "obs_dtype": np.dtype(spec.obs_dtype).name,
        "actions": spec.num_actions,
        "masked": spec.masked,
        "weights": len(flat.weights),
        "state": len(flat.initial),
        "env": spec.name,
        "jax": jax.__version__,
        **record,
    }
    (directory / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")

"""Export of policies as ONNX, to run in onnxruntime without JAX; needs the extra ``onnx``."""

from __future__ import annotations

import contextlib
import io
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdqn.export.fold import folded
from jaxdqn.export.loader import onnx_step
from jaxdqn.export.serialized import FlatPolicy, Policy, abstract_inputs, write_about
from jaxdqn.storage.jsonl import Record
from jaxdqn.types import Array, EnvSpec

MODEL, INITIAL = "policy.onnx", "initial.npz"
_OPSET = 21
_STEPS, _BATCH = 20, 64
_LEAST_AGREEMENT = 0.99
"""Minimum fraction of random observations on which the model must take the policy's action; below 1
because rounding decides between actions of almost equal value."""


def write_onnx(directory: Path, policy: Policy, flat: FlatPolicy, record: Record) -> Record:
    """Write a policy as an ONNX model, its description and its loader into a new directory.

    The model is compared with the policy on random observations before it is written.

    Args:
        directory: directory to create.
        policy: policy to write.
        flat: the same policy, converted by ``flatten``.
        record: additional JSON values for ``policy.json``.

    Returns:
        ``model_bytes``, the size of the model, which ``policy.json`` also contains. The converter
        may store weights in other forms than ``flat``.

    Raises:
        ValueError: if the extra is not installed, or the network cannot be converted.
        OSError: if the directory cannot be written.
    """
    model = convert(flat, policy.spec)
    _check_actions(model, flat, policy.spec)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / MODEL).write_bytes(model)
    arrays: dict[str, Any] = {f"s{index}": leaf for index, leaf in enumerate(flat.initial)}
    np.savez(directory / INITIAL, **arrays)
    size = {"model_bytes": len(model)}
    write_about(directory, policy.spec, flat, "onnx", {**record, **size})
    return size


def convert(flat: FlatPolicy, spec: EnvSpec) -> bytes:
    """Return the ONNX model of a policy, for any batch size.

    Its inputs are ``state_0``, ..., ``obs`` [B, O], ``first`` [B] and, with masks, ``legal`` [B,
    A]. Its outputs are the actions [B] int32 and the next state.

    Raises:
        ValueError: if the extra is not installed, or the network cannot be converted.
    """
    to_onnx = require_converter()
    (batch,) = jax.export.symbolic_shape("B")
    _, state, obs, first, masks = abstract_inputs(flat, spec, batch)
    weights, count = [_native(leaf) for leaf in flat.weights], len(state)
    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in weights]

    def act(*inputs: Array) -> tuple[Array, ...]:
        arguments = (weights, list(inputs[:count]), *inputs[count : count + 2])
        actions, next_state = simplified(*arguments, list(inputs[count + 2 :]))
        return actions, *next_state

    names = [f"state_{index}" for index in range(count)]
    try:
        # Trace here: while the converter traces, it replaces JAX functions such as softmax by
        # versions that use the wrong axis under vmap.
        simplified = folded(flat.act, shapes, state, obs, first, masks)
        with _quiet():
            model = to_onnx(
                act,
                [*state, obs, first, *masks],
                model_name="policy",
                opset=_OPSET,
                input_names=[*names, "obs", "first", *(["legal"] if masks else [])],
                output_names=["action", *(f"next_{name}" for name in names)],
            )
    except Exception as error:  # the converter raises its own errors and those of JAX
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"format='onnx': must be 'stablehlo' for this network, which jax2onnx cannot convert: "
            f"{type(error).__name__}: {reason}"
        ) from error
    return model.SerializeToString()


def _native(leaf: np.ndarray) -> Array:
    """Return a weight as an array; bfloat16 stored as uint16 becomes bfloat16 for onnxruntime."""
    return jax.numpy.asarray(leaf.view(jax.numpy.bfloat16) if leaf.dtype == np.uint16 else leaf)


def require_converter() -> Any:
    """Return ``jax2onnx.to_onnx``.

    Raises:
        ValueError: if the extra ``onnx`` is not installed.
    """
    try:
        import onnxruntime  # noqa: F401 (the model is compared with the policy)
        from jax2onnx import to_onnx
    except ImportError as error:
        raise ValueError(
            "format='onnx': must come with the extra onnx and the converter, "
            'pip install "jaxdqn[onnx]" && pip install --no-deps "jax2onnx>=0.17" '
            f"({error})"
        ) from error
    return to_onnx


@contextlib.contextmanager
def _quiet() -> Any:
    """Suppress the output of the converter and its log of values of unknown type."""
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _check_actions(model: bytes, flat: FlatPolicy, spec: EnvSpec) -> None:
    """Check that a model takes the policy's actions on random observations.

    Raises:
        ValueError: if too many actions differ.
    """
    step = onnx_step(model)
    rng = np.random.default_rng(0)
    state = [np.repeat(leaf, _BATCH, axis=0) for leaf in flat.initial]
    expected_state, act = list(state), jax.jit(flat.act)
    equal = 0
    for _ in range(_STEPS):
        obs = _random(rng, (_BATCH, *spec.obs_shape), np.dtype(spec.obs_dtype))
        first = rng.random(_BATCH) < 0.1
        masks = []
        if spec.masked:
            masks = [rng.random((_BATCH, spec.num_actions)) < 0.5]
            masks[0][:, 0] |= ~masks[0].any(axis=-1)
        actions, state = step(state, obs, first, masks)
        expected, expected_state = act(flat.weights, expected_state, obs, first, masks)
        equal += int(np.sum(actions == np.asarray(expected)))
    share = equal / (_STEPS * _BATCH)
    if share < _LEAST_AGREEMENT:
        raise ValueError(
            "format='onnx': must be 'stablehlo' for this network: the model that jax2onnx made "
            f"takes the policy's action on {share:.1%} of random observations only"
        )


def _random(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return random observations of a shape and dtype."""
    if dtype == np.bool_:
        return rng.random(shape) < 0.3
    if dtype.kind in "iu":
        return rng.integers(0, 256 if dtype == np.uint8 else 2, shape).astype(dtype)
    return rng.normal(size=shape).astype(dtype)

"""Load an exported policy without importing the rest of jaxdqn.

This needs jax and flatbuffers, or onnxruntime if the format of the policy is onnx. ``jaxdqn
export`` writes a copy of this file next to each policy:

    from load_policy import load
    policy = load()
    action = policy(obs)
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Step = Callable[[Any, Any, Any, Any], tuple[Any, list[Any]]]
"""``step(state, obs[B, O], first[B], masks) -> (actions[B], state)``"""


def load(directory: Any = Path(__file__).parent) -> Callable[..., Any]:
    """Load the policy of a directory.

    Returns:
        ``policy(obs, first=False, legal=None) -> actions``: an int for one observation [O], an
        int32 array [B] for a batch [B, O]. ``first``, bool or [B], is True for the first
        observation of an episode; it clears the frame stack and the recurrent carry. Both are kept
        between calls and cleared if B changes. ``legal``, [A] or [B, A], is the mask of legal
        actions, for a policy that needs one.
    """
    directory = Path(directory)
    about = json.loads((directory / "policy.json").read_text(encoding="utf-8"))
    program = {"stablehlo": stablehlo_program, "onnx": onnx_program}[about["format"]]
    step, initial = program(directory, about)
    shape = tuple(about["obs_shape"])
    state: list[Any] = []
    size = 0

    def policy(obs: Any, first: Any = False, legal: Any = None) -> Any:
        nonlocal state, size
        obs = np.asarray(obs, about["obs_dtype"])
        single = obs.shape == shape
        if not single and obs.shape[1:] != shape:
            raise ValueError(f"obs.shape={obs.shape}: must be {shape} or (B, *{shape})")
        obs = obs[None] if single else obs
        if (legal is not None) != about["masked"]:
            must = "given" if about["masked"] else "left out"
            raise ValueError(f"legal: must be {must}; it is the mask of legal actions")
        masks = []
        if legal is not None:
            masks = [np.asarray(legal, bool).reshape(len(obs), about["actions"])]
        if size != len(obs):
            size = len(obs)
            state = [np.repeat(leaf, size, axis=0) for leaf in initial]
        first = np.broadcast_to(np.asarray(first, bool), size)
        actions, state = step(state, obs, first, masks)
        return int(actions[0]) if single else np.array(actions)

    return policy


def stablehlo_program(directory: Path, about: Any) -> tuple[Step, list[Any]]:
    """Return the program of a policy in the format stablehlo, and its initial state."""
    import jax
    from jax import export

    exported = export.deserialize(bytearray((directory / "policy.stablehlo").read_bytes()))
    with np.load(directory / "weights.npz") as arrays:
        weights = [jax.numpy.asarray(arrays[f"w{i}"]) for i in range(about["weights"])]
        initial = [arrays[f"s{i}"] for i in range(about["state"])]
    call = jax.jit(exported.call)
    return lambda *inputs: call(weights, *inputs), initial


def onnx_program(directory: Path, about: Any) -> tuple[Step, list[Any]]:
    """Return the program of a policy in the format onnx, and its initial state."""
    with np.load(directory / "initial.npz") as arrays:
        initial = [arrays[f"s{i}"] for i in range(about["state"])]
    return onnx_step((directory / "policy.onnx").read_bytes()), initial


def onnx_step(model: bytes) -> Step:
    """Return the step function of an ONNX model; it runs on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def step(state: Any, obs: Any, first: Any, masks: Any) -> tuple[Any, list[Any]]:
        inputs = {f"state_{index}": leaf for index, leaf in enumerate(state)}
        inputs |= {"obs": obs, "first": first, **({"legal": masks[0]} if masks else {})}
        actions, *state = session.run(None, {name: inputs[name] for name in names})
        return actions, state

    return step

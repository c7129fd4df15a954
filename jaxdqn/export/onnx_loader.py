"""Load an exported policy. Needs onnxruntime and NumPy; nothing of jaxdqn or JAX is imported.

``jaxdqn export --format onnx`` writes a copy of this file beside each policy:

    from load_policy import load
    policy = load()
    action = policy(obs)
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def make_session(model: bytes) -> Any:
    """Return an onnxruntime session on CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def step(session: Any, state: Any, obs: Any, first: Any, masks: Any) -> tuple[Any, list[Any]]:
    """Return the actions [B] and the next state."""
    names = [each.name for each in session.get_inputs()]
    inputs = {f"state_{index}": leaf for index, leaf in enumerate(state)}
    inputs |= {"obs": obs, "first": first, **({"legal": masks[0]} if masks else {})}
    actions, *state = session.run(None, {name: inputs[name] for name in names})
    return actions, state


def load(directory: Any = Path(__file__).parent) -> Callable[..., Any]:
    """Load the policy of a directory.

    Returns:
        ``policy(obs, first=False, legal=None) -> actions``: an int for one observation [O], an
        int32 array [B] for a batch [B, O]. ``first``, bool or [B], is True where an observation
        opens an episode: frame stacks and the recurrent carry are then cleared. They are kept
        between calls, and cleared if B changes. ``legal`` [B, A] is the mask of legal actions,
        for a policy that needs one.
    """
    directory = Path(directory)
    about = json.loads((directory / "policy.json").read_text(encoding="utf-8"))
    session = make_session((directory / "policy.onnx").read_bytes())
    with np.load(directory / "initial.npz") as arrays:
        initial = [arrays[f"s{i}"] for i in range(about["state"])]
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
        actions, state = step(session, state, obs, first, masks)
        return int(actions[0]) if single else np.array(actions)

    return policy

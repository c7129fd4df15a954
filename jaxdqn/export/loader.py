"""Load an exported policy. Needs jax and flatbuffers; nothing else of jaxdqn is imported.

``jaxdqn export`` writes a copy of this file beside each policy:

    from load_policy import load
    policy = load()
    action = policy(obs)
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export


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
    exported = export.deserialize(bytearray((directory / "policy.stablehlo").read_bytes()))
    with np.load(directory / "weights.npz") as arrays:
        weights = [jax.numpy.asarray(arrays[f"w{i}"]) for i in range(about["weights"])]
        initial = [arrays[f"s{i}"] for i in range(about["state"])]
    call, shape = jax.jit(exported.call), tuple(about["obs_shape"])
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
        actions, state = call(weights, state, obs, first, masks)
        return int(actions[0]) if single else np.array(actions)

    return policy

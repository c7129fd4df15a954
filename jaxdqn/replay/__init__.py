"""Replay: one ring of rows per device; transitions or sequences, uniform or prioritised draws."""

from jaxdqn.replay.memory import check_memory, free_bytes, replay_bytes
from jaxdqn.replay.prioritized import importance_weights, make_prioritized
from jaxdqn.replay.prioritized_sequence import make_prioritized_sequence
from jaxdqn.replay.sequence import make_sequence
from jaxdqn.replay.uniform import make_uniform
from jaxdqn.tree import tree_bytes

__all__ = [
    "check_memory",
    "free_bytes",
    "importance_weights",
    "make_prioritized",
    "make_prioritized_sequence",
    "make_sequence",
    "make_uniform",
    "replay_bytes",
    "tree_bytes",
]

"""Record of a run's registered loss.

Acting needs only the head of the loss. With this record, ``load_policy`` and evaluation work in
processes that have not registered the loss.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxdqn.config.config import Config
from jaxdqn.config.loss_registry import BUILT_IN, HEADS, LOSSES, register_missing_loss
from jaxdqn.storage.jsonl import Record

LOSS = "registered_loss"
"""Key of ``parts.json``: ``{"name": ..., "head": ...}``."""


def with_loss(record: Mapping[str, Any], config: Config) -> Record:
    """Add the loss to the record of a run's parts, unless the loss is built in."""
    if config.loss in BUILT_IN:
        return dict(record)
    return {**record, LOSS: {"name": config.loss, "head": LOSSES[config.loss].head}}


def is_loss_record(value: Any) -> bool:
    """Return True if a value is the record of a loss."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("name"), str)
        and value["name"].isidentifier()
        and value.get("head") in HEADS
    )


def register_recorded_loss(parts: str | os.PathLike[str]) -> None:
    """Register the head of the loss recorded in ``parts.json``; ignore a missing or damaged file.

    Raises:
        ValueError: if the loss is already registered with a different head.
    """
    try:
        record = json.loads(Path(parts).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # read_parts reports a damaged file
    loss = record.get(LOSS) if isinstance(record, dict) else None
    if loss is not None and is_loss_record(loss) and loss["name"] not in BUILT_IN:
        register_missing_loss(loss["name"], loss["head"])

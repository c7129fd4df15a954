"""Protocol of a study: properties of its environments that are needed to compare returns.

Imports no JAX.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from jaxdqn.storage.jsonl import Record


def column(env: str, results: Iterable[Record]) -> str:
    """Return the title of the column of an environment: its name and its protocol."""
    found = [result for result in results if result["env"] == env]
    limits = " or ".join(f"{limit:,}" for limit in _limits(found))
    parts = [" or ".join(sorted({_forms(result) for result in found} - {""}))]
    parts += [f"episodes of at most {limits} steps"] if limits else []
    text = "; ".join(part for part in parts if part)
    return f"{env} ({text})" if text else env


def protocol(envs: Sequence[str], results: Sequence[Record]) -> str:
    """Return the properties of the environments as a section of the report; empty without any."""
    lines = []
    for env in envs:
        found = [result for result in results if result["env"] == env]
        lines += [
            f"- {env}: an episode ends after at most {limit:,} environment steps."
            for limit in _limits(found)
        ]
    if not lines:
        return ""
    text = "Time limits of the episodes:\n\n" + "\n".join(lines)
    if any(env.endswith("-MinAtar") for env in envs):
        text += (
            "\n\ngymnax truncates the episodes of MinAtar: these returns are not comparable with "
            "returns under another time limit or none."
        )
        deterministic = [
            result
            for result in results
            if result["env"].endswith("-MinAtar") and not _sticky_actions(result)
        ]
        if deterministic:
            text += (
                " Without sticky actions most games are deterministic: the greedy episodes of a "
                "seed are one or two distinct ones in Breakout and SpaceInvaders, whatever their "
                "number."
            )
    return text


def _forms(result: Record) -> str:
    """Return the variant of a game as text: its sticky actions and its action set."""
    if not result["env"].endswith("-MinAtar") and not _sticky_actions(result):
        return ""
    sticky, full = _sticky_actions(result), result["config"].get("full_action_set", False)
    return ", ".join(
        [f"sticky actions {sticky:g}" if sticky else "no sticky actions"]
        + (
            ["all six actions" if full else "minimal action set"]
            * result["env"].endswith("-MinAtar")
        )
    )


def _sticky_actions(result: Record) -> Any:
    return result["config"].get("sticky_actions", 0.0)


def _limits(results: Iterable[Record]) -> list[int]:
    """Return the time limits of episodes, in environment steps."""
    limits = {result["max_episode_steps"] for result in results}
    return sorted(limit for limit in limits if limit is not None)

"""Evaluate a run: ``jaxdqn evaluate RUN [--episodes N] [--gif FILE]``."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jaxdqn.cli.backend import keep_compiled_programs
from jaxdqn.cli.flags import parse, run_command
from jaxdqn.config.config import Config
from jaxdqn.storage.directory import SUMMARY


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    run: Annotated[str, tyro.conf.Positional]
    """Run directory."""
    episodes: int = 100
    """Greedy episodes, played in as many environments."""
    seed: int = 0
    """Seed of the episodes; they are not those the run was evaluated on."""
    which: Literal["best", "last"] = "best"
    """Parameters to evaluate."""
    gif: str | None = None
    """Draw one episode as an animated GIF into this file."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = parse(Flags, argv, prog="jaxdqn evaluate", description=__doc__)
    for name, least in (("episodes", 1), ("seed", 0)):
        if getattr(flags, name) < least:
            raise ValueError(f"{name}={getattr(flags, name)}: must be at least {least}")
    if flags.gif is not None and not flags.gif.lower().endswith(".gif"):
        raise ValueError(f"gif={flags.gif!r}: must end in .gif")
    from jaxdqn.storage.directory import read_config

    config = read_config(flags.run)

    import jax
    import numpy as np

    from jaxdqn.export.policy import load_run
    from jaxdqn.training.evaluation import make_evaluator

    keep_compiled_programs()
    if flags.gif is not None:
        from jaxdqn.envs.render import require_drawable

        require_drawable(config.env)
    learner = _learner(flags, config)
    config, trainer, params = load_run(flags.run, flags.which)
    evaluate = make_evaluator(
        trainer.agent, trainer.environment, flags.episodes, frame_stack=config.frame_stack
    )
    # Folded, so that seed 0 does not repeat the random numbers of a run with seed 0.
    key = jax.random.fold_in(jax.random.key(flags.seed), _STREAM)
    key_episodes, key_gif = jax.random.split(key)
    returns = np.asarray(jax.jit(evaluate)(params, key_episodes).returns, np.float64)
    error = returns.std(ddof=1) / math.sqrt(returns.size) if returns.size > 1 else math.nan
    print(
        f"{config.env}, {flags.which} parameters{learner}: return {returns.mean():.2f} ± "
        f"{error:.2f} (mean ± standard error of {returns.size} greedy episodes)"
    )
    if flags.gif is not None:
        _draw(flags.gif, config, trainer, params, key_gif)
        print(f"episode drawn in {flags.gif}")


_STREAM = 0x65766C


def _learner(flags: Flags, config: Config) -> str:
    """Return which learner of a population the parameters are of; empty where it has one."""
    from jaxdqn.monitoring.records import learner_identity

    summary = Path(flags.run) / SUMMARY
    if config.learners == 1 or not summary.exists():
        return ""
    index = json.loads(summary.read_text())[f"{flags.which}_learner"]
    identity = learner_identity(config, index)
    return " of " + ", ".join(f"{name} {value:g}" for name, value in identity.items())


def _draw(path: str, config: Any, trainer: Any, params: Any, key: Any) -> None:
    from jaxdqn.envs.render import save_gif
    from jaxdqn.training.evaluation import play_episode

    states, rewards = play_episode(
        trainer.agent,
        trainer.environment,
        params,
        key,
        frame_stack=config.frame_stack,
        max_steps=_MOST_FRAMES,
    )
    try:
        save_gif(path, config.env, states, rewards)
    except OSError as error:
        raise ValueError(f"gif={path!r}: must be writable: {error.strerror}") from error


_MOST_FRAMES = 2_000


if __name__ == "__main__":
    sys.exit(main())

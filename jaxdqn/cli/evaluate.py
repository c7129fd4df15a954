"""Evaluate a run: ``jaxdqn evaluate RUN [--episodes N] [--video FILE]``."""

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
from jaxdqn.cli.parts import PolicyParts, references
from jaxdqn.config.config import Config
from jaxdqn.storage.directory import SUMMARY, read_config

_DESCRIPTION = """Play greedy episodes with the parameters of a run, and print their mean return
and its standard error. With --video, draw one more episode."""
_STREAM = 0x65766C
_MAX_FRAMES = 2_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory."""
    episodes: int = 100
    """Number of greedy episodes."""
    seed: int = 0
    """Seed of the episodes. They differ from those that the run was evaluated on during
    training."""
    which: Literal["best", "last"] = "best"
    """Parameters to evaluate."""
    video: Annotated[str | None, tyro.conf.arg(aliases=["--gif"], metavar="FILE")] = None
    """Draw one episode into this file, a .gif or an .mp4; MP4 needs pip install
    "jaxdqn[video]"."""
    parts: tyro.conf.OmitArgPrefixes[PolicyParts] = dataclasses.field(default_factory=PolicyParts)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = parse(Flags, argv, prog="jaxdqn evaluate", description=_DESCRIPTION)
    for name, minimum in (("episodes", 1), ("seed", 0)):
        if getattr(flags, name) < minimum:
            raise ValueError(f"{name}={getattr(flags, name)}: must be at least {minimum}")
    parts = references(flags.parts)
    config = read_config(flags.run)
    if flags.video is not None:
        from jaxdqn.envs.video import check_video_path

        check_video_path(flags.video)

    import jax
    import numpy as np

    from jaxdqn.cli.explain import environment_text
    from jaxdqn.export.policy import load_run
    from jaxdqn.training.evaluation import make_evaluator

    keep_compiled_programs()
    learner = _learner(flags, config)
    config, trainer, params = load_run(flags.run, flags.which, **parts)
    if flags.video is not None:
        from jaxdqn.envs.video import require_drawable

        require_drawable(trainer.environment)
    evaluate = make_evaluator(
        trainer.agent, trainer.environment, flags.episodes, frame_stack=config.frame_stack
    )
    # Folded, so that seed 0 does not repeat the random numbers of a run with seed 0.
    key = jax.random.fold_in(jax.random.key(flags.seed), _STREAM)
    key_episodes, key_video = jax.random.split(key)
    returns = np.asarray(jax.jit(evaluate)(params, key_episodes).returns, np.float64)
    error = returns.std(ddof=1) / math.sqrt(returns.size) if returns.size > 1 else math.nan
    environment = environment_text(trainer.environment.spec)
    print(
        f"{environment}, {flags.which} parameters{learner}: return {returns.mean():.2f} ± "
        f"{error:.2f} (mean ± standard error of {returns.size} greedy episodes)"
    )
    if flags.video is not None:
        _draw(flags.video, config, trainer, params, key_video)
        print(f"episode drawn in {flags.video}")


def _learner(flags: Flags, config: Config) -> str:
    """Return the identity of the evaluated learner as text; empty if the run has one learner."""
    from jaxdqn.monitoring.records import learner_identity

    summary = Path(flags.run) / SUMMARY
    if config.learners == 1 or not summary.exists():
        return ""
    index = json.loads(summary.read_text())[f"{flags.which}_learner"]
    identity = learner_identity(config, index)
    return " of " + ", ".join(f"{name} {value:g}" for name, value in identity.items())


def _draw(path: str, config: Config, trainer: Any, params: Any, key: Any) -> None:
    """Play one episode and draw it."""
    from jaxdqn.envs.video import save_video
    from jaxdqn.training.evaluation import play_episode

    states, rewards = play_episode(
        trainer.agent,
        trainer.environment,
        params,
        key,
        frame_stack=config.frame_stack,
        max_steps=_MAX_FRAMES,
    )
    save_video(path, trainer.environment, states, rewards)


if __name__ == "__main__":
    sys.exit(main())

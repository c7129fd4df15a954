"""Evaluate a run: ``jaxdqn evaluate RUN [--episodes N] [--video FILE]``."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jaxdqn.cli.backend import keep_compiled_programs, start_backend
from jaxdqn.cli.flags import parse, run_command
from jaxdqn.cli.parts import PolicyParts, references
from jaxdqn.config.config import Config
from jaxdqn.storage.directory import SUMMARY, read_config
from jaxdqn.storage.jsonl import Record

_DESCRIPTION = """Play greedy episodes with the parameters of a run, and print their mean return,
its standard error and how many of the episodes are distinct. If few are, as in a deterministic
game, print the return with a few random actions too. With --video, draw one more episode."""
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
    epsilon: float | None = None
    """Probability of a uniformly random action; by default eval_epsilon of the run."""
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
    if flags.epsilon is not None and not 0 <= flags.epsilon <= 1:
        raise ValueError(f"epsilon={flags.epsilon}: must be between 0 and 1")
    parts = references(flags.parts)
    config = read_config(flags.run)
    if flags.video is not None:
        from jaxdqn.envs.video import check_video_path

        check_video_path(flags.video)

    import jax

    from jaxdqn.cli.explain import environment_text
    from jaxdqn.export.policy import load_run
    from jaxdqn.monitoring.records import few_distinct
    from jaxdqn.training.evaluation import EPSILON

    start_backend()
    keep_compiled_programs()
    learner = _learner(flags, config)
    config, trainer, params = load_run(flags.run, flags.which, **parts)
    if flags.video is not None:
        from jaxdqn.envs.video import require_drawable
        from jaxdqn.training.vector_trainer import VectorTrainer

        if isinstance(trainer, VectorTrainer):
            raise ValueError(
                f"video={flags.video!r}: must be left out: environments on the host cannot be "
                "drawn yet"
            )
        require_drawable(trainer.environment)
    epsilon = config.eval_epsilon if flags.epsilon is None else flags.epsilon
    # Folded, so that seed 0 does not repeat the random numbers of a run with seed 0.
    key = jax.random.fold_in(jax.random.key(flags.seed), _STREAM)
    key_episodes, key_video = jax.random.split(key)
    play = partial(_play, config, trainer, params, key_episodes, flags.episodes)
    record, text = play(epsilon)
    environment = environment_text(trainer.environment.spec, config.sticky_actions)
    print(f"{environment}, {flags.which} parameters{learner}: {text}")
    if few_distinct(record) and epsilon == 0:
        print(f"few episodes are distinct; with a few random actions: {play(EPSILON)[1]}")
    if flags.video is not None:
        _draw(flags.video, config, trainer, params, key_video)
        print(f"episode drawn in {flags.video}")


def _play(
    config: Config, trainer: Any, params: Any, key: Any, episodes: int, epsilon: float
) -> tuple[Record, str]:
    """Return the record of an evaluation, and its result as text."""
    import jax

    from jaxdqn.monitoring.records import evaluation_record
    from jaxdqn.training.evaluation import make_evaluator
    from jaxdqn.training.vector_evaluation import make_vector_evaluator
    from jaxdqn.training.vector_trainer import VectorTrainer

    on_host = isinstance(trainer, VectorTrainer)
    make: Any = make_vector_evaluator if on_host else make_evaluator
    evaluate = make(
        trainer.agent,
        trainer.environment,
        episodes,
        frame_stack=config.frame_stack,
        epsilon=epsilon,
    )
    evaluate = evaluate if on_host else jax.jit(evaluate)
    record = evaluation_record(jax.device_get(evaluate(params, key)))
    error = record["return_std"] / math.sqrt(episodes) if episodes > 1 else math.nan
    kind = f"{epsilon:g}-greedy" if epsilon else "greedy"
    return record, (
        f"return {record['return_mean']:.2f} ± {error:.2f} (mean ± standard error of {episodes} "
        f"{kind} episodes, {record['distinct_episodes']} of them distinct), "
        f"{record['terminated_share']:.1%} of them terminated"
    )


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

"""Evaluate a run: ``jaxdqn evaluate RUN [--episodes N] [--on NAME] [--video FILE]``."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro

from jaxdqn.cli.backend import keep_compiled_programs, start_backend
from jaxdqn.cli.flags import parse, run_command
from jaxdqn.cli.parts import PolicyParts, references, take_env_args
from jaxdqn.config.config import Config
from jaxdqn.storage.directory import SUMMARY, read_config
from jaxdqn.storage.jsonl import Record, write_json

_DESCRIPTION = """Play greedy episodes with the parameters of a run. Print the mean return, its
standard error, and the number of distinct episodes. If few episodes are distinct, as in a
deterministic game, also print the return of an epsilon-greedy policy. With --on, play in another
environment. With --video, draw one more episode."""
_STREAM = 0x65766C
_MAX_FRAMES = 2_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory."""
    episodes: int = 100
    """Number of greedy episodes."""
    seed: int = 0
    """Seed of the episodes. The episodes differ from those of the evaluations during training."""
    epsilon: float | None = None
    """Probability of a uniformly random action; by default eval_epsilon of the run."""
    which: Literal["best", "last"] = "best"
    """Parameters to evaluate."""
    on: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Play in this environment, named as by --env of a run. It must have the observations and
    actions of the policy, or a registered mapping, as the MinAtar games have. Sticky actions and
    the action set of an environment on the device are those of the run."""
    env_args: tuple[str, ...] = ()
    """Arguments of the environment of --on, each as NAME=VALUE. --env-arg NAME=VALUE gives one
    argument, and may be repeated."""
    json: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Write the result into this JSON file, with the environment and its protocol."""
    video: Annotated[str | None, tyro.conf.arg(aliases=["--gif"], metavar="FILE")] = None
    """Draw one episode into this file, a .gif or an .mp4; MP4 needs pip install
    "jaxdqn[video]"."""
    parts: tyro.conf.OmitArgPrefixes[PolicyParts] = dataclasses.field(default_factory=PolicyParts)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> None:
    arguments = take_env_args(argv)
    flags = parse(Flags, arguments, prog="jaxdqn evaluate", description=_DESCRIPTION)
    _check(flags)
    parts = references(flags.parts)
    config = read_config(flags.run)
    if flags.video is not None:
        from jaxdqn.envs.video import check_video_path

        check_video_path(flags.video)

    import jax

    from jaxdqn.export.policy import load_run
    from jaxdqn.monitoring.records import few_distinct
    from jaxdqn.training.evaluation import EPSILON

    start_backend()
    keep_compiled_programs()
    learner = _learner(flags, config)
    config, trainer, params = load_run(flags.run, flags.which, **parts)
    player = _player(flags, config, trainer)
    if flags.video is not None:
        from jaxdqn.envs.video import require_drawable

        require_drawable(player.environment)
    epsilon = config.eval_epsilon if flags.epsilon is None else flags.epsilon
    # Fold in a constant, so that seed 0 does not repeat the random numbers of a run with seed 0.
    key = jax.random.fold_in(jax.random.key(flags.seed), _STREAM)
    key_episodes, key_video = jax.random.split(key)
    play = partial(_play, player, params, key_episodes, flags.episodes)
    record, text = play(epsilon)
    print(f"{player.text}, {flags.which} parameters{learner}: {text}")
    if flags.json is not None:
        about = {"run": flags.run, "which": flags.which, "seed": flags.seed, "epsilon": epsilon}
        _write(flags.json, {**about, **player.record, **record})
    if few_distinct(record) and epsilon == 0:
        print(f"few episodes are distinct; with an epsilon-greedy policy: {play(EPSILON)[1]}")
    if flags.video is not None:
        _draw(flags.video, player, params, key_video)
        print(f"episode drawn in {flags.video}")


def _check(flags: Flags) -> None:
    for name, minimum in (("episodes", 1), ("seed", 0)):
        if getattr(flags, name) < minimum:
            raise ValueError(f"{name}={getattr(flags, name)}: must be at least {minimum}")
    if flags.epsilon is not None and not 0 <= flags.epsilon <= 1:
        raise ValueError(f"epsilon={flags.epsilon}: must be between 0 and 1")
    if flags.env_args and flags.on is None:
        raise ValueError(f"env_args={list(flags.env_args)}: must come with on; without it the "
                         "arguments are those of the run")  # fmt: skip
    if flags.json is not None and not Path(flags.json).parent.is_dir():
        raise ValueError(f"json={flags.json!r}: must be in a directory that exists")


class _Player(NamedTuple):
    """Policy, and the environment in which it plays."""

    agent: Any
    environment: Any
    frame_stack: int
    text: str
    """Environment and protocol, for the terminal."""
    record: Record
    """Environment and protocol, for ``--json``."""

    @property
    def on_host(self) -> bool:
        from jaxdqn.envs.vector import HostEnvironment

        return isinstance(self.environment, HostEnvironment)


def _player(flags: Flags, config: Config, trainer: Any) -> _Player:
    """Return the policy, and the environment to play in: that of the run, or that of ``--on``."""
    from jaxdqn.cli.explain import environment_text
    from jaxdqn.envs import environment_of_name
    from jaxdqn.envs.judge import as_judge
    from jaxdqn.training.evaluation import LONGEST_EPISODE

    trained = trainer.environment.spec
    environment, sticky = trainer.environment, config.sticky_actions
    text = environment_text(trained, sticky)
    if flags.on is not None:
        environment, sticky = environment_of_name(config, flags.on, flags.env_args)
        environment = as_judge(environment, trained)
        limit = environment.spec.max_episode_steps or LONGEST_EPISODE
        text = (
            f"{environment_text(environment.spec, sticky)}, episodes of at most {limit:,} steps, "
            f"policy trained on {text}"
        )
    spec = environment.spec
    record = {
        "env": spec.name,
        "arguments": list(spec.arguments),
        "sticky_actions": sticky,  # those of the wrapper; a simulator's own are in its arguments
        "max_episode_steps": spec.max_episode_steps or LONGEST_EPISODE,
        "trained_on": trained.name,
        "trained_with_sticky_actions": config.sticky_actions,
    }
    return _Player(trainer.agent, environment, config.frame_stack, text, record)


def _write(path: str, record: Record) -> None:
    try:
        write_json(Path(path), record)
    except OSError as error:
        raise ValueError(f"json={path!r}: must be writable: {error.strerror}") from error


def _play(
    player: _Player, params: Any, key: Any, episodes: int, epsilon: float
) -> tuple[Record, str]:
    """Evaluate a policy; return the record of the evaluation, and its result as text."""
    import jax

    from jaxdqn.monitoring.records import evaluation_record
    from jaxdqn.training.evaluation import make_evaluator
    from jaxdqn.training.vector_evaluation import make_vector_evaluator

    make: Any = make_vector_evaluator if player.on_host else make_evaluator
    evaluate = make(
        player.agent,
        player.environment,
        episodes,
        frame_stack=player.frame_stack,
        epsilon=epsilon,
    )
    evaluate = evaluate if player.on_host else jax.jit(evaluate)
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


def draw_episode(run: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Draw an episode that is played with the best parameters of a run.

    Raises:
        ValueError: if the run cannot be read, or its environment cannot be drawn.
    """
    import jax

    from jaxdqn.envs.video import require_drawable
    from jaxdqn.export.policy import load_run

    flags = Flags(run=os.fspath(run), video=os.fspath(path))
    start_backend()
    keep_compiled_programs()
    config, trainer, params = load_run(flags.run, flags.which)
    player = _player(flags, config, trainer)
    require_drawable(player.environment)
    key = jax.random.fold_in(jax.random.key(flags.seed), _STREAM)
    _draw(os.fspath(path), player, params, key)


def _draw(path: str, player: _Player, params: Any, key: Any) -> None:
    """Play one episode and draw it."""
    from jaxdqn.envs.video import save_frames, save_video
    from jaxdqn.training.evaluation import play_episode
    from jaxdqn.training.vector_drawing import play_drawn_episode

    play: Any = play_drawn_episode if player.on_host else play_episode
    episode = play(
        player.agent,
        player.environment,
        params,
        key,
        frame_stack=player.frame_stack,
        max_steps=_MAX_FRAMES,
    )
    if player.on_host:
        save_frames(path, player.environment.spec.name, episode)
    else:
        save_video(path, player.environment, *episode)


if __name__ == "__main__":
    sys.exit(main())

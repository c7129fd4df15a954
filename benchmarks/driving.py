"""Train the preset driving and evaluate its policies: ``python -m benchmarks.driving``.

A policy is compared with the best constant action, by mean return and by the share of episodes
without a crash, in EnvPool's HighwayFast-v0 and in the original highway-env.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from jaxdqn.cli.flags import parse, run_command

ORIGINAL = "gymnasium:highway_env:highway-fast-v0"
ACTIONS = ("LANE_LEFT", "IDLE", "LANE_RIGHT", "FASTER", "SLOWER")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    seeds: int = 5
    """Number of training runs, with seeds 0, 1, ..."""
    rows: int | None = None
    """Rows of a run; by default the budget of the preset."""
    episodes: int = 1000
    """Episodes of each policy in EnvPool."""
    original: int = 0
    """Episodes of each policy in the original highway-env, which steps about a thousand times more
    slowly; 0 for none."""
    out: str | None = None
    """Parent of the run directories; by default none are written."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = parse(Flags, argv, prog="python -m benchmarks.driving", description=__doc__)
    for option, least in (("seeds", 1), ("episodes", 2), ("original", 0)):
        if getattr(flags, option) < least:
            raise ValueError(f"{option}={getattr(flags, option)}: must be at least {least}")
    from benchmarks.report import describe, format_table, stamp
    from jaxdqn.config.presets import preset
    from jaxdqn.envs.vector import host_environment

    config = preset("driving", **({} if flags.rows is None else {"total_rows": flags.rows}))
    environments = {"EnvPool": (host_environment(config.env, {}), flags.episodes)}
    if flags.original:
        environments["highway-env"] = host_environment(ORIGINAL, {}), flags.original
    header = ("policy", "simulator", "return ± 95 %", "without a crash", "train s")
    best = best_action(*environments["EnvPool"])
    rows = [
        (f"constant {ACTIONS[best]}", name, *measured(*judge_action(*where, best)), "")
        for name, where in environments.items()
    ]
    means: dict[str, list[float]] = {name: [] for name in environments}
    for seed in range(flags.seeds):
        summary, found = train_and_judge(config, seed, environments, flags.out)
        for name, result in found.items():
            seconds = f"{summary['train_seconds']:.0f}"
            rows.append((f"seed {seed}", name, *measured(*result), seconds))
            means[name].append(float(result[0].mean()))
    print(describe(stamp()))
    print(format_table(header, rows))
    for name, values in means.items():
        if len(values) > 1:
            print(f"{name}, over seeds: {mean_and_interval(values)}")


def train_and_judge(
    config: Any, seed: int, environments: dict[str, tuple[Any, int]], out: str | None
) -> tuple[Any, dict[str, tuple[Any, Any]]]:
    """Train one seed; return its summary, and the returns and crashes [N] of the best policy."""
    import jax

    from jaxdqn.config.config import replace
    from jaxdqn.run.runner import run
    from jaxdqn.training.vector_evaluation import make_vector_evaluator
    from jaxdqn.training.vector_trainer import make_single_trainer

    seeded = replace(config, seed=seed)
    result = run(seeded, out=None if out is None else f"{out}/driving-{seed}")
    agent = make_single_trainer(seeded).agent
    found = {}
    for name, (environment, episodes) in environments.items():
        evaluate = make_vector_evaluator(agent, environment, episodes)
        info = evaluate(result.best_params, jax.random.key(10_000 + seed))
        found[name] = info.returns, info.terminated
    return result.summary, found


def best_action(environment: Any, episodes: int) -> int:
    """Return the constant action with the highest mean return."""
    means = [judge_action(environment, episodes, each)[0].mean() for each in range(len(ACTIONS))]
    return means.index(max(means))


def judge_action(environment: Any, episodes: int, action: int) -> tuple[Any, Any]:
    """Return the returns and the crashes [N] of episodes with one constant action."""
    import numpy as np

    num_envs = min(32, episodes)
    vector = environment.make(num_envs)
    timestep = vector.reset(20_000)
    total, returns, crashes = np.zeros(num_envs), [], []
    # Every environment plays the same number of episodes, whatever their length.
    left = np.full(num_envs, -(-episodes // num_envs))
    while left.any():
        timestep = vector.step(np.full(num_envs, action, np.int32))
        total = np.where(timestep.first, 0.0, total + timestep.reward)
        ends = (timestep.terminated | timestep.truncated) & (left > 0)
        returns += total[ends].tolist()
        crashes += timestep.terminated[ends].tolist()
        left -= ends
    vector.close()
    return np.array(returns), np.array(crashes)


def measured(returns: Any, crashes: Any) -> tuple[str, str]:
    """Return the mean of the returns with its interval, and the share without a crash."""
    return mean_and_interval(returns), f"{1 - crashes.mean():.1%}"


def mean_and_interval(values: Sequence[float]) -> str:
    """Return the mean of N values and the half-width of its 95 % interval by Student's t."""
    import numpy as np

    array = np.asarray(values, np.float64)
    half = student_t(len(array) - 1) * array.std(ddof=1) / math.sqrt(len(array))
    return f"{array.mean():.2f} ± {half:.2f}"


def student_t(degrees: int) -> float:
    """Return the 97.5 % quantile of Student's t, to 1 %.

    From three degrees of freedom on, it is the expansion of Abramowitz and Stegun 26.7.5 in the
    quantile of the normal distribution; below, it is tabulated.
    """
    exact = {1: 12.706, 2: 4.303}
    if degrees in exact:
        return exact[degrees]
    z = 1.959964
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / degrees + second / degrees**2 + third / degrees**3


if __name__ == "__main__":
    raise SystemExit(main())

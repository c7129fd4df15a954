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
    json: str | None = None
    """File for the measurements, such as benchmarks/results/driving.json."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = parse(Flags, argv, prog="python -m benchmarks.driving", description=__doc__)
    for option, least in (("seeds", 1), ("episodes", 2), ("original", 0)):
        if getattr(flags, option) < least:
            raise ValueError(f"{option}={getattr(flags, option)}: must be at least {least}")
    from benchmarks.report import check_writable, describe, format_table, stamp, write_json
    from jaxdqn.config.presets import preset
    from jaxdqn.envs.vector import host_environment

    check_writable(flags.json)
    config = preset("driving", **({} if flags.rows is None else {"total_rows": flags.rows}))
    environments = {"EnvPool": (host_environment(config.env, {}), flags.episodes)}
    if flags.original:
        environments["highway-env"] = host_environment(ORIGINAL, {}), flags.original
    header = ("policy", "simulator", "return ± 95 %", "without a crash", "train s")
    best = best_action(*environments["EnvPool"])
    stamped = stamp()
    records = [
        policy_record(f"constant {ACTIONS[best]}", name, *judge_action(*where, best))
        for name, where in environments.items()
    ]
    means: dict[str, list[float]] = {name: [] for name in environments}
    for seed in range(flags.seeds):
        summary, found = train_and_judge(config, seed, environments, flags.out)
        for name, result in found.items():
            records.append(
                policy_record(f"seed {seed}", name, *result, seconds=summary["train_seconds"])
            )
            means[name].append(float(result[0].mean()))
    print(describe(stamped))
    print(format_table(header, [table_row(record) for record in records]))
    over_seeds = {name: interval_of(values) for name, values in means.items() if len(values) > 1}
    for name, (mean, half) in over_seeds.items():
        print(f"{name}, over seeds: {mean:.2f} ± {half:.2f}")
    if flags.json is not None:
        write_json(flags.json, {
            "stamp": stamped, "flags": dataclasses.asdict(flags), "policies": records,
            "over_seeds": {name: {"return_mean": mean, "half_width": half}
                           for name, (mean, half) in over_seeds.items()},
        })  # fmt: skip
        print(f"measurements in {flags.json}")


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


def policy_record(
    policy: str, simulator: str, returns: Any, crashes: Any, *, seconds: float | None = None
) -> dict[str, Any]:
    """Return the record of a policy from the returns and crashes [N] of its episodes.

    ``half_width`` is that of the 95 % interval of ``return_mean``.
    """
    mean, half = interval_of(returns)
    return {
        "policy": policy, "simulator": simulator, "episodes": len(returns), "return_mean": mean,
        "half_width": half, "share_without_crash": float(1 - crashes.mean()),
        "train_seconds": seconds,
    }  # fmt: skip


def table_row(record: dict[str, Any]) -> tuple[str, ...]:
    """Return the cells of a policy in the printed table."""
    seconds = record["train_seconds"]
    return (
        record["policy"],
        record["simulator"],
        f"{record['return_mean']:.2f} ± {record['half_width']:.2f}",
        f"{record['share_without_crash']:.1%}",
        "" if seconds is None else f"{seconds:.0f}",
    )


def interval_of(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean of N values and the half-width of its 95 % interval by Student's t."""
    import numpy as np

    array = np.asarray(values, np.float64)
    half = student_t(len(array) - 1) * array.std(ddof=1) / math.sqrt(len(array))
    return float(array.mean()), float(half)


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

"""Studies with runs that do not train, for the tests of ``jaxdqn study``."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from jaxdqn.cli.study import __main__
from jaxdqn.config.config import to_dict
from jaxdqn.storage.jsonl import to_json

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    "num_envs=4", "batch_size=8", "replay_capacity=256", "warmup_rows=32", "hidden_sizes=16",
    "eval_episodes=4", "eval_every=200", "log_every=100",
]  # fmt: skip


class FakeRun:
    """Write the files of a run without training.

    A seed's return is half its number in the first evaluation and its number in the second.
    """

    def __init__(self):
        self.made = []
        self.before = lambda config, loggers: None
        """Called when a run starts; a reason that it returns interrupts the run."""

    def __call__(self, config, *, out, resume, preset, loggers, **parts):
        assert resume
        self.made.append(SimpleNamespace(config=config, out=out, preset=preset, parts=parts))
        out.mkdir(parents=True, exist_ok=True)
        (out / "config.json").write_text(to_json(to_dict(config)))
        (out / "checkpoints" / "000000000001").mkdir(parents=True, exist_ok=True)
        reason = self.before(config, loggers)
        ending = {"interrupted": reason is not None, "ended_by": reason}
        summary = self.summary(config, preset) | ending
        if reason is None:
            (out / "evaluations.jsonl").write_text(self.evaluations(config))
            (out / "metrics.jsonl").write_text(self.metrics(config))
        (out / "summary.json").write_text(to_json(summary))
        return SimpleNamespace(summary=summary)

    @staticmethod
    def draw(rows, envs, out):
        out.write_bytes(b"drawn")

    @property
    def seeds(self):
        """Seeds of each run, in the order of their starts."""
        return [
            list(range(made.config.seed, made.config.seed + made.config.num_seeds))
            for made in self.made
        ]

    @staticmethod
    def summary(config, preset):
        seeds = range(config.seed, config.seed + config.num_seeds)
        common = {"seconds_to_solve": None, "diverged_at_chunk": None}
        learners = [
            {"seed": seed, "eval_return_mean": seed, "best_eval_return_mean": seed + 0.5, **common}
            for seed in seeds
        ]
        if len(seeds) == 1:
            learners = []
        return {
            "env": config.env, "preset": preset, "seed": config.seed, "devices": 1,
            "device_kind": "abacus", "versions": {"jax": "0.10", "jaxdqn": "0.1"},
            "env_steps": 1000 * len(seeds),
            "eval_episodes": config.eval_episodes, "eval_return_mean": config.seed,
            "best_eval_return_mean": config.seed + 0.5, "train_seconds": 8.0, "eval_seconds": 2.0,
            "compile_seconds": 1.0, "env_steps_per_second": 1234.0,
            "gradient_steps_per_second": 567.0, "learners": learners,
        }  # fmt: skip

    @staticmethod
    def evaluations(config):
        seeds, lines = np.arange(config.seed, config.seed + config.num_seeds), []
        for share in (0.5, 1):
            record = {"purpose": "evaluate", "rows": int(config.total_rows * share) * len(seeds)}
            record["return_mean"] = float(share * seeds.mean())
            record["seconds"] = 10.0 * share
            record["distinct_episodes"] = len(seeds)
            if len(seeds) > 1:
                record["learners"] = (share * seeds).tolist()
                record["learners_distinct_episodes"] = [1] * len(seeds)
            lines += [record, {**record, "purpose": "confirm", "return_mean": -1.0}]
        return "".join(to_json(line) + "\n" for line in lines)

    @staticmethod
    def metrics(config):
        """Twenty chunks; a seed's return is the chunk's number plus its own, none in the last."""
        seeds, lines = np.arange(config.seed, config.seed + config.num_seeds), []
        for chunk in range(20):
            rows = int(config.total_rows * (chunk + 1) / 20) * len(seeds)
            returns = [None if chunk == 19 else float(chunk + seed) for seed in seeds]
            record = {"rows": rows, "return_mean": returns[0]}
            if len(seeds) > 1:
                record["learners"] = {"return_mean": returns}
            lines.append(record)
        return "".join(to_json(line) + "\n" for line in lines)


def study(*more, presets=("dqn",), envs=("CartPole-v1",), seeds=2, out="study"):
    argv = ["--presets", *presets, "--envs", *envs, "--seeds", str(seeds), "--out", out, *more]
    return __main__.main(argv)


def lines(out="study"):
    return [json.loads(line) for line in Path(out, "results.jsonl").read_text().splitlines()]


def cells_of(results):
    return [(result["preset"], result["env"], result["seed"]) for result in results]

"""Runs in environments on the host: records, resuming, evaluation and failures."""

import shutil
import signal
from contextlib import suppress

import gymnasium
import jax
import numpy as np
import pytest

import jaxdqn
from jaxdqn.cli import evaluate as evaluate_command
from jaxdqn.cli.study.cells import groups_of, make_cell
from jaxdqn.config.config import Config, replace
from jaxdqn.envs.vector import HostEnvironment
from jaxdqn.envs.vector.checked import check_time_step
from jaxdqn.errors import RunFailed, RunStopped
from jaxdqn.monitoring.terminal import make_progress_logger
from jaxdqn.run.runner import run
from jaxdqn.storage.jsonl import read_lines
from jaxdqn.training import vector_evaluation
from jaxdqn.training.vector_evaluation import make_vector_evaluator
from jaxdqn.training.vector_trainer import make_single_trainer
from tests.toys import cycle, tiny
from tests.training.test_vector_trainer import OnHost, on_host

CARTPOLE = tiny(
    env="gymnasium:CartPole-v1", hidden_sizes=(8,), total_rows=400, log_every=100,
    eval_every=200, eval_episodes=5, checkpoint_every=100,
)  # fmt: skip


@pytest.fixture(scope="module")
def by_name(tmp_path_factory):
    """Return the result of a run, and its directory, which tests must copy before changing it."""
    out = tmp_path_factory.mktemp("host") / "run"
    return run(CARTPOLE, out=out), out


def test_a_run_by_name_is_recorded_evaluated_and_loaded(by_name, capsys):
    result, out = by_name
    assert result.summary["env"] == "gymnasium:CartPole-v1"
    assert (result.summary["rows"], result.summary["gradient_steps"]) == (400, 92)
    assert 0 < result.summary["env_steps"] < 400
    assert result.summary["eval_episodes"] == 5
    assert len(read_lines(out / "metrics.jsonl")) == 4

    assert evaluate_command.main([str(out), "--episodes", "7"]) == 0
    assert "7 greedy episodes" in capsys.readouterr().out
    policy = jaxdqn.load_policy(out)
    env = gymnasium.make("CartPole-v1")
    assert policy(env.reset(seed=0)[0]) in (0, 1)
    env.close()


def test_every_chunk_records_the_shares_of_acting_and_learning(by_name):
    for record in read_lines(by_name[1] / "metrics.jsonl"):
        shares = {name: record[name] for name in ("env_share", "act_share", "wait_share")}
        assert all(0 < share < 1 for share in shares.values()), shares
        assert sum(shares.values()) <= 1
        assert "learn_share" not in record  # the calls of programs do not block


def test_a_run_by_name_is_resumed(by_name, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(by_name[1], out)
    resumed = run(replace(CARTPOLE, total_rows=600), out=out, resume=True)
    assert resumed.summary["rows"] == 32 + 7 * 23 * 4
    (event,) = [one for one in read_lines(out / "events.jsonl") if one["event"] == "resumed"]
    assert "the environments on the host start new episodes" in event["message"]


def test_pqn_which_has_no_warm_up_is_run_and_resumed(tmp_path):
    config = Config(
        env="gymnasium:CartPole-v1", algorithm="pqn", num_envs=4, rollout_length=8, minibatches=2,
        hidden_sizes=(8,), total_rows=128, log_every=64, eval_every=0, eval_episodes=2,
        checkpoint_every=64,
    )  # fmt: skip
    summary = run(config, out=tmp_path / "run").summary
    # Two passes of two minibatches for 32 rows.
    assert (summary["rows"], summary["gradient_steps"]) == (128, 16)
    resumed = run(replace(config, total_rows=192), out=tmp_path / "run", resume=True).summary
    assert (resumed["rows"], resumed["gradient_steps"]) == (192, 24)


def test_the_first_line_of_a_run_tells_when_it_acts_and_why(capsys):
    stopped = replace(CARTPOLE, max_seconds=1e-3)
    for overlap, text in (
        (True, "while the device learns, on parameters one iteration old (overlap, the default)"),
        (False, "in turn with learning, on the newest parameters (--no-overlap)"),
    ):
        config = replace(stopped, overlap=overlap)
        with suppress(RunStopped):  # it trains if another test has compiled its programs
            run(config, loggers=[make_progress_logger(config)])
        assert f"CartPole-v1, seed 0; acts {text}; compiling" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_with_sticky_actions_and_checked_bounds_is_evaluated_with_them(tmp_path, capsys):
    config = replace(CARTPOLE, sticky_actions=0.25, check_bounds=True)
    result = run(config, out=tmp_path / "run")
    assert result.summary["rows"] == 400
    assert evaluate_command.main([str(tmp_path / "run"), "--episodes", "3"]) == 0
    assert "gymnasium:CartPole-v1 (sticky_actions=0.25)" in capsys.readouterr().out


@pytest.mark.slow
def test_rows_of_the_host_have_the_probabilities_for_importance_ratios():
    config = replace(CARTPOLE, n_step=3, importance_ratios=True, target_epsilon=0.1)
    result = run(replace(config, epsilon_schedule="constant", epsilon_end=0.2, total_rows=200))
    stored = np.asarray(result.state.replay.storage.extras)[: int(result.state.replay.size)]
    np.testing.assert_array_equal(stored[:8], 0.5)  # the warm-up
    np.testing.assert_allclose(np.unique(stored[8:]), [0.1, 0.9], rtol=1e-6)


class Breaking(OnHost):
    """Raise, or return a reward of NaN, after some steps of all vector environments."""

    steps = 0

    def __init__(self, environment, num_envs, at, kind):
        super().__init__(environment, num_envs)
        self._at, self._kind, self._count = at, kind, 0

    def step(self, actions):
        self._count += 1
        timestep = super().step(actions)
        if self._count == self._at and self._kind == "raise":
            raise ZeroDivisionError("the simulator\nbroke")
        if self._count == self._at:
            return timestep._replace(reward=np.full(len(actions), np.nan, np.float32))
        return timestep


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("raise", "^env='cycle': step failed: ZeroDivisionError: the simulator broke$"),
        pytest.param(
            "nan",
            "^env='cycle': step failed: ValueError: environment 0 returned a reward of nan$",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_simulator_that_fails_ends_the_run_with_a_checkpoint(tmp_path, kind, message):
    environment, out = cycle([1.0, 2.0], limit=4), tmp_path / "run"
    config = tiny(
        hidden_sizes=(8,), total_rows=400, log_every=100, eval_episodes=4, checkpoint_every=400
    )
    # 8 vector steps of warm-up, 23 of the first chunk, and 7 of the second.
    breaking = HostEnvironment(
        environment.spec, lambda num_envs: Breaking(environment, num_envs, 8 + 23 + 8, kind)
    )
    with pytest.raises(RunFailed, match=message):
        run(config, out=out, environment=breaking)
    (event,) = [
        one for one in read_lines(out / "events.jsonl") if one["event"] == "environment failed"
    ]
    assert "Traceback" in event["traceback"]
    result = run(config, out=out, environment=on_host(environment), resume=True)
    assert result.summary["rows"] == 400
    rows = [record["rows"] for record in read_lines(out / "metrics.jsonl")]
    assert rows == [124, 216, 308, 400]


class FailingAt(OnHost):
    """Raise when ``left`` steps have been taken, over all environments of this class."""

    left = 0

    def step(self, actions):
        FailingAt.left -= 1
        if FailingAt.left == 0:
            raise OSError("licence lost")
        return super().step(actions)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "message"),
    [
        pytest.param(3, "step failed", id="in the warm-up"),
        pytest.param(8 + 23 * 4 + 1, "step failed", id="in the last evaluation",
                     marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_failure_outside_training_is_recorded_and_the_run_can_be_resumed(tmp_path, step, message):
    environment, out = cycle([1.0, 2.0], limit=4), tmp_path / "run"
    config = tiny(
        hidden_sizes=(8,), total_rows=400, log_every=100, eval_every=0, eval_episodes=4,
        checkpoint_every=100,
    )  # fmt: skip
    FailingAt.left = step
    failing = HostEnvironment(environment.spec, lambda envs: FailingAt(environment, envs))
    with pytest.raises(RunFailed, match=f"^env='cycle': {message}: OSError: licence lost$"):
        run(config, out=out, environment=failing)
    events = [one["event"] for one in read_lines(out / "events.jsonl")]
    assert events.count("environment failed") == 1
    result = run(config, out=out, environment=failing, resume=True)
    # The evaluation that failed is repeated.
    assert result.summary["eval_episodes"] == 4
    assert (result.summary["rows"], result.best_params is None) == (400, False)


class Unreliable(OnHost):
    """Raise at the steps ``failing``, numbered over all environments of this class."""

    steps, failing = 0, ()

    def step(self, actions):
        Unreliable.steps += 1
        if Unreliable.steps in self.failing:
            raise OSError(f"licence {Unreliable.steps} lost")
        return super().step(actions)


@pytest.fixture
def unreliable(monkeypatch):
    """Return ``fail_at(*steps)``, which makes an environment on the host whose given steps fail."""
    environment = cycle([1.0, 2.0], limit=4)

    def fail_at(*steps):
        monkeypatch.setattr(Unreliable, "steps", 0)
        monkeypatch.setattr(Unreliable, "failing", steps)
        return HostEnvironment(environment.spec, lambda envs: Unreliable(environment, envs))

    return fail_at


RESTARTING = tiny(
    hidden_sizes=(8,), total_rows=400, log_every=100, eval_every=0, eval_episodes=4,
    checkpoint_every=100, restart_envs=2,
)  # fmt: skip


def test_environments_that_fail_are_started_again_with_new_episodes(tmp_path, unreliable):
    # Steps 8 + 10 and 8 + 20 are in the first chunk of 23 vector steps.
    result = run(RESTARTING, out=tmp_path / "run", environment=unreliable(18, 28))
    assert (result.summary["rows"], result.summary["env_restarts"]) == (400, 2)
    events = [one for one in read_lines(tmp_path / "run" / "events.jsonl")
              if one["event"] == "environments restarted"]  # fmt: skip
    assert len(events) == 2
    assert all("lost; starting all environments again" in one["message"]
               and "Traceback" in one["traceback"] for one in events)  # fmt: skip
    first, *_ = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert first["env_restarts"] == 2
    # The parts of an episode before and after a restart are not added up.
    assert first["length_mean"] == 4


@pytest.mark.slow
def test_a_failure_beyond_the_restarts_ends_the_run_with_a_checkpoint(tmp_path, unreliable):
    with pytest.raises(RunFailed, match="licence 56 lost"):
        run(RESTARTING, out=tmp_path / "run", environment=unreliable(18, 28, 33 + 23))
    events = [one["event"] for one in read_lines(tmp_path / "run" / "events.jsonl")]
    assert events.count("environments restarted") == 2
    assert events.count("environment failed") == 1
    resumed = run(RESTARTING, out=tmp_path / "run", environment=unreliable(), resume=True)
    assert resumed.summary["rows"] == 400


def restart_reasons(out):
    """Return the part of each restart's message before the first semicolon, in order."""
    return [
        one["message"].partition(";")[0]
        for one in read_lines(out / "events.jsonl")
        if one["event"] == "environments restarted"
    ]


def test_restarts_before_the_final_failure_of_a_chunk_are_recorded(tmp_path, unreliable):
    config = replace(RESTARTING, restart_envs=1)
    with pytest.raises(RunFailed, match="licence 28 lost"):
        run(config, out=tmp_path / "run", environment=unreliable(18, 28))
    (reason,) = restart_reasons(tmp_path / "run")
    assert "licence 18 lost" in reason
    resumed = run(config, out=tmp_path / "run", environment=unreliable(), resume=True)
    assert resumed.summary["env_restarts"] == 1


def test_acting_and_evaluation_share_the_restarts_and_each_is_recorded_once(tmp_path, unreliable):
    # 8 vector steps of warm-up and 23 of the first chunk, then an evaluation of 4 steps. Its second
    # step fails and it is repeated, until step 37. Step 40 acts again, and one more step fails.
    config = replace(RESTARTING, eval_every=100)
    with pytest.raises(RunFailed, match="licence 45 lost"):
        run(config, out=tmp_path / "run", environment=unreliable(33, 40, 45))
    reasons = restart_reasons(tmp_path / "run")
    assert ["33" in reasons[0], "40" in reasons[1], len(reasons)] == [True, True, 2]


def test_a_restart_of_the_last_evaluation_is_in_the_summary(tmp_path, unreliable):
    # The last evaluation follows 8 + 4 * 23 steps and takes 4; then the best parameters are
    # evaluated on fresh episodes.
    result = run(RESTARTING, out=tmp_path / "run", environment=unreliable(8 + 92 + 4 + 2))
    assert result.summary["env_restarts"] == 1
    assert len(restart_reasons(tmp_path / "run")) == 1


@pytest.mark.slow
def test_an_evaluation_whose_environments_fail_is_repeated(tmp_path, unreliable):
    # The last evaluation follows 8 + 4 * 23 steps.
    result = run(RESTARTING, out=tmp_path / "run", environment=unreliable(8 + 92 + 2))
    assert result.summary["env_restarts"] == 1
    (*_, last) = read_lines(tmp_path / "run" / "evaluations.jsonl")
    assert (last["episodes"], last["length_mean"]) == (4, 4)


@pytest.mark.parametrize(
    ("episodes", "limit", "made", "rounds"), [(5, None, 2, 3), (5, 4, 2, 1), (1, None, 1, 1)]
)
def test_an_evaluation_starts_few_simulators(monkeypatch, episodes, limit, made, rounds):
    environment = cycle([1.0, 2.0], limit=limit or 10**6)
    monkeypatch.setattr(vector_evaluation, "LONGEST_EPISODE", 6)
    counts = {"made": 0, "reset": 0}

    class Counted(OnHost):
        def __init__(self, environment, num_envs):
            super().__init__(environment, num_envs)
            counts["made"] += num_envs

        def reset(self, seed):
            counts["reset"] += 1
            return super().reset(seed)

    spec = environment.spec._replace(max_episode_steps=limit)
    host = HostEnvironment(spec, lambda num_envs: Counted(environment, num_envs), 2)
    trainer = make_single_trainer(tiny(hidden_sizes=(8,)), environment=host)
    params = trainer.init(jax.random.key(0)).agent.params
    info = make_vector_evaluator(trainer.agent, host, episodes)(params, jax.random.key(1))
    length = limit or 6
    assert info.lengths.tolist() == [length] * episodes
    assert counts == {"made": made, "reset": rounds}


def test_a_stop_request_ends_an_evaluation_without_a_result(tmp_path):
    environment = cycle([1.0, 2.0], limit=4)
    steps = []

    class Stopping(OnHost):
        def step(self, actions):
            steps.append(len(actions))
            if len(steps) == 8 + 92 // 2 + 3:  # the third step of the first evaluation
                signal.raise_signal(signal.SIGTERM)
            return super().step(actions)

    host = HostEnvironment(environment.spec, lambda num_envs: Stopping(environment, num_envs), 2)
    config = replace(RESTARTING, restart_envs=0, eval_every=200, eval_episodes=40, log_every=200)
    result = run(config, out=tmp_path / "run", environment=host)
    assert result.summary["interrupted"]
    # The first evaluation stopped; one for the summary followed, since there was none before.
    (record,) = read_lines(tmp_path / "run" / "evaluations.jsonl")
    assert (record["rows"], record["episodes"]) == (216, 40)
    assert steps[8 + 46 :] == [2] * (3 + 4 * 20 + 19)


@pytest.mark.slow
def test_programs_are_compiled_before_the_first_chunk(tmp_path):
    result = run(replace(CARTPOLE, eval_every=0, log_every=30), out=tmp_path / "run")
    seconds = [record["seconds"] for record in read_lines(tmp_path / "run" / "metrics.jsonl")]
    assert seconds[0] < 0.5 * result.summary["compile_seconds"]


@pytest.mark.parametrize(
    "fields", [{"env_processes": True}, {"env_args": ("max_episode_steps=5",)}]
)
def test_arguments_of_a_registered_environment_are_rejected_with_your_own(fields):
    (name,) = fields
    with pytest.raises(ValueError, match=f"^{name}=.*: must be left out with your own environment"):
        make_single_trainer(tiny(**fields), environment=on_host())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"obs": np.zeros((4, 3), np.float32)},
            r"obs is float32\[4, 3\], and must be float32\[4, 2\]",
        ),
        ({"reward": np.zeros(3, np.float32)}, r"reward is float32\[3\], and must be float32\[4\]"),
        ({"first": np.zeros(4)}, r"first is float64\[4\], and must be bool\[4\]"),
        ({"reward": np.float32([0, 0, np.inf, 0])}, "environment 2 returned a reward of inf"),
    ],
)
def test_an_invalid_time_step_is_named(changes, message):
    environment = cycle([1.0, 2.0], limit=4)
    timestep = OnHost(environment, 4).reset(0)
    assert check_time_step(timestep, environment.spec, 4) is timestep
    with pytest.raises(ValueError, match=f"^{message}$"):
        check_time_step(timestep._replace(**changes), environment.spec, 4)


def test_a_study_trains_one_seed_in_a_run(tmp_path):
    cell = make_cell("dqn", "gymnasium:CartPole-v1", range(3), {}, None)
    groups = groups_of(cell, [0, 1, 2], tmp_path, seeds_at_once=None)
    assert [list(group.seeds) for group in groups] == [[0], [1], [2]]


def test_an_evaluation_plays_as_many_episodes_in_each_environment():
    environment = cycle([1.0, 2.0, 4.0], limit=3)  # 7, and one less for every action 1
    config = tiny(hidden_sizes=(8,))
    trainer = make_single_trainer(config, environment=on_host(environment))
    params = trainer.init(jax.random.key(0)).agent.params
    evaluate = make_vector_evaluator(trainer.agent, trainer.environment, 70)
    info = evaluate(params, jax.random.key(1))
    assert info.returns.shape == info.lengths.shape == info.digests.shape == (70,)
    assert len(set(info.returns.tolist())) == len(set(info.digests.tolist())) == 1
    np.testing.assert_array_equal(info.lengths, 3)
    explored = make_vector_evaluator(trainer.agent, trainer.environment, 70, epsilon=1.0)(
        params, jax.random.key(1)
    )
    assert set(explored.returns.tolist()) == {4.0, 5.0, 6.0, 7.0}
    assert len(set(explored.digests.tolist())) == 8

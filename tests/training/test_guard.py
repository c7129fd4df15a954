"""The numerical guard: non-finite steps are detected, undone, and handled as configured."""

import dataclasses
import json
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdqn.cli.outcome import outcome
from jaxdqn.communication.collectives import identity_collectives
from jaxdqn.config.config import replace
from jaxdqn.envs import make_environment
from jaxdqn.errors import RunFailed
from jaxdqn.monitoring.loggers import Logger
from jaxdqn.parallel import across_devices, device_collectives
from jaxdqn.run.progress import Progress
from jaxdqn.run.runner import run
from jaxdqn.storage.jsonl import read_lines
from jaxdqn.training.guard import all_finite, keep_finite, not_finite
from jaxdqn.training.trainer import make_trainer
from jaxdqn.types import AgentState, LearnInfo, counter_int
from tests.run.test_run import compiled_once  # noqa: F401 (a fixture)
from tests.toys import noisy, quick_jit, tiny

NAN, INF = float("nan"), float("inf")


@cache
def poisoned(at, value=NAN, limit=6):
    """Return an environment that pays the reward ``value`` at step ``at`` of each episode."""

    def reset(key):
        count = jnp.int32(0)
        return count, jnp.zeros(2)

    def step(key, count, action):
        count = count + 1
        obs = jax.random.uniform(key, (2,))
        reward = jnp.where(count == at, value, obs[0])
        return count, obs, reward, jnp.bool_(False)

    return make_environment(reset, step, name="poisoned", num_actions=2, max_episode_steps=limit)


ALL_FINITE = quick_jit(all_finite)
CONFIG = tiny(total_rows=832, eval_episodes=2, eval_every=0, checkpoint_every=100)
"""Eight chunks of 25 iterations."""


def agent_state(value):
    params = {"w": jnp.float32([1.0, value])}
    return AgentState(params, params, {"mu": jnp.zeros(2), "count": jnp.int32(3)}, jnp.int32(1))


def info(loss=1.0, grad_norm=1.0):
    return LearnInfo(jnp.float32(loss), jnp.zeros(2), jnp.float32(grad_norm), jnp.float32(0))


def test_a_finite_step_is_kept_and_any_other_undone():
    before, after = agent_state(2.0), agent_state(3.0)
    kept, undone = keep_finite(before, after, info(), identity_collectives, periodic=False)
    assert not undone
    np.testing.assert_array_equal(kept.params["w"], [1, 3])
    for bad in (info(grad_norm=NAN), info(loss=NAN), info(loss=INF), info(grad_norm=INF)):
        kept, undone = keep_finite(before, after, bad, identity_collectives, periodic=True)
        assert undone
        jax.tree.map(np.testing.assert_array_equal, kept, before)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("index", [0, 3])
def test_finite_means_every_element_of_every_leaf(value, index):
    tree = {
        "small": np.arange(4, dtype=np.float32),
        "large": np.ones((200, 100), np.float32),
        "count": np.int32(1),
    }
    assert ALL_FINITE(tree)
    assert all_finite({})
    assert ALL_FINITE({"huge": np.full(1000, 1e30, np.float32)})
    assert ALL_FINITE({"half": np.full(200_000, 0.5, np.float16)})
    for name in ("small", "large"):
        leaf = tree[name].copy()
        leaf.ravel()[index] = value
        assert not ALL_FINITE({**tree, name: leaf})
        assert not_finite({**tree, name: leaf}) == [f"{name} (1 of {leaf.size})"]
    assert not_finite(tree) == []


@pytest.fixture(scope="module")
def chunked():
    """Return a state and a chunk of one iteration, with a NaN reward at a known row."""
    trainer = make_trainer(replace(CONFIG, guard="skip"), environment=poisoned(30, limit=1000))
    state = quick_jit(trainer.init)(jax.random.key(0))
    chunk = quick_jit(trainer.chunk(1))
    return state, chunk


@pytest.mark.slow
def test_the_steps_before_the_first_skipped_one_are_counted_exactly(chunked):
    state, chunk = chunked
    flags, params = [], []
    for _ in range(60):
        params.append(state.agent.params)
        state, metrics = chunk(state)
        flags.append(int(metrics.skipped))
    assert 0 < sum(flags) < 60
    first = flags.index(1)
    # The warm-up has 8 steps: the reward of step 30 is in the replay after 22 iterations.
    assert first >= 21
    for index, flag in enumerate(flags[:-1]):
        same = jax.tree.map(np.array_equal, params[index], params[index + 1])
        assert all(jax.tree.leaves(same)) == bool(flag)
    trainer = make_trainer(
        replace(CONFIG, guard="skip", gradient_steps=1), environment=poisoned(30, limit=1000)
    )
    start = quick_jit(trainer.init)(jax.random.key(0))
    _, metrics = quick_jit(trainer.chunk(60))(start)
    assert int(metrics.skipped) == sum(flags)
    assert int(metrics.first_skipped) == first
    assert counter_int(state.counters.gradient_steps) == 60


@pytest.mark.slow
def test_the_count_before_the_first_skipped_step_spans_inner_and_outer_loops():
    config = replace(CONFIG, guard="skip", gradient_steps=3)
    trainer = make_trainer(config, environment=poisoned(30, limit=1000))
    state = quick_jit(trainer.init)(jax.random.key(1))
    step = quick_jit(trainer.step)
    current, skipped, first = state, 0, None
    for iteration in range(40):
        current, metrics = step(current)
        if metrics.skipped and first is None:
            first = 3 * iteration + int(metrics.first_skipped)
        skipped += int(metrics.skipped)
    _, metrics = quick_jit(trainer.chunk(40))(state)
    assert (int(metrics.skipped), int(metrics.first_skipped)) == (skipped, first)


def test_all_replicas_undo_a_step_that_is_not_finite_on_one():
    """Only one device's loss is not finite, and the gradient is finite."""
    config = replace(CONFIG, devices=2, guard="skip", loss="huber")
    trainer = across_devices(
        make_trainer(
            config, environment=poisoned(30, INF, 1000), collectives=device_collectives(2)
        ),
        jax.devices()[:2],
    )
    state = quick_jit(trainer.init)(jax.random.key(0))
    state, metrics = quick_jit(trainer.chunk(60))(state)
    assert 0 < int(metrics.skipped) < 60
    for leaf in jax.tree.leaves(state.agent):
        np.testing.assert_array_equal(leaf[0], leaf[1])
    assert not not_finite(state.agent)


@pytest.mark.slow
def test_without_guard_the_parameters_become_non_finite():
    result = run(replace(CONFIG, guard="off"), environment=poisoned(30, limit=1000))
    assert not_finite(result.state.agent.params)


def test_skip_continues_and_reports_the_skipped_steps(tmp_path):
    result = run(
        replace(CONFIG, guard="skip"), out=tmp_path / "run", environment=poisoned(90, limit=1000)
    )
    assert not not_finite(result.state.agent)
    skipped = [record["skipped"] for record in read_lines(tmp_path / "run" / "metrics.jsonl")]
    assert skipped[0] == 0
    assert sum(skipped) > 0
    events = read_lines(tmp_path / "run" / "events.jsonl")
    found = [event for event in events if event["event"] == "not finite"]
    assert [event["skipped"] for event in found] == [count for count in skipped if count]
    # One message reports the first undone step.
    (message,) = [event["message"] for event in found if "message" in event]
    assert found[0]["message"] == message
    assert f"gradient step {found[0]['first']:,} was not finite" in message
    assert result.summary["skipped_gradient_steps"] == sum(skipped)
    assert f"({sum(skipped)} of them not finite and undone)" in outcome(result.summary)


@pytest.mark.slow
def test_a_run_that_undoes_every_gradient_step_fails_with_its_files_written(tmp_path):
    config = replace(CONFIG, guard="skip", loss="squared")
    environment = poisoned(1, 1e38, limit=1)  # finite, unlike its square
    out = tmp_path / "run"
    with pytest.raises(RunFailed, match="none of the 200 gradient steps was finite"):
        run(config, out=out, environment=environment)
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["gradient_steps"], summary["skipped_gradient_steps"]) == (200, 200)
    assert (out / "best").is_dir()
    assert (out / "last").is_dir()
    with pytest.raises(RunFailed, match="nothing was learned"):
        run(config, out=out, environment=environment, resume=True)
    assert json.loads((out / "summary.json").read_text())["skipped_gradient_steps"] == 200


def test_undone_steps_are_counted_across_the_parts_of_a_chunk_and_earlier_checkpoints():
    progress = Progress.of(2)
    # A checkpoint from before undone steps were counted.
    progress.restore({"chunk": 3, "totals": {"gradient_steps": 12}})
    assert progress.skipped_gradient_steps == [0, 0]
    progress.restore({**dataclasses.asdict(progress), "skipped": [2, 5]})
    progress.partial = {"metrics": {"skipped": [0, 4]}}
    assert progress.skipped_gradient_steps == [2, 9]
    assert not progress.learned_nothing
    progress.skipped = [3, 5]
    assert progress.learned_nothing


def test_stop_names_the_step_the_tensor_and_the_last_good_checkpoint(tmp_path):
    with pytest.raises(RunFailed) as stopped:
        run(CONFIG, out=tmp_path / "run", environment=poisoned(90, limit=1000))
    message = str(stopped.value)
    (event,) = [
        record
        for record in read_lines(tmp_path / "run" / "events.jsonl")
        if record["event"] == "not finite"
    ]
    assert f"gradient step {event['first']:,}" in message
    assert "replay.storage.reward" in message
    assert "agent.params" not in message  # the update was undone
    assert "hyper" not in message
    assert f"{tmp_path / 'run' / 'checkpoints'}/" in message
    checkpoint = int(message.rpartition("/")[2])
    assert checkpoint < event["chunk"]
    with pytest.raises(RunFailed, match="no checkpoint"):
        run(CONFIG, environment=poisoned(90, limit=1000))


def test_rollback_restores_a_checkpoint_with_a_lower_rate_up_to_a_limit(tmp_path):
    logged = []
    logger = Logger(log=lambda kind, record: logged.append((kind, record)), close=lambda: None)
    config = replace(CONFIG, guard="rollback", rollback_limit=2, rollback_factor=0.5)
    with pytest.raises(RunFailed, match="after 2 rollbacks"):
        # The environments pay the reward with different random keys too.
        run(
            config,
            out=tmp_path / "run",
            environment=poisoned(30, limit=1000),
            loggers=[logger],
        )
    rollbacks = [r for kind, r in logged if kind == "event" and r["event"] == "rollback"]
    assert len(rollbacks) == 2
    rates = [record["learning_rate"] for record in rollbacks]
    np.testing.assert_allclose(rates, [config.learning_rate / 2, config.learning_rate / 4])
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    # The file was truncated at the checkpoint: no chunk is recorded twice.
    chunks = [record["chunk"] for record in lines]
    assert chunks == list(range(1, len(chunks) + 1))


@pytest.mark.slow
def test_rollback_rescues_a_run_that_diverges_by_its_learning_rate(tmp_path):
    logger = Logger(log=lambda kind, record: None, close=lambda: None)
    config = replace(
        CONFIG,
        guard="rollback",
        learning_rate=3e19,  # parameters overflow in the forward pass
        rollback_factor=1e-15,
    )
    result = run(config, out=tmp_path / "run", environment=noisy(), loggers=[logger])
    assert result.summary["rollbacks"] >= 1
    assert result.summary["rows"] == 32 + 100 * 8
    assert not not_finite(result.state)


def test_rollback_needs_checkpoints():
    with pytest.raises(ValueError, match="checkpoint_every=0: must be above 0 with guard"):
        replace(CONFIG, guard="rollback", checkpoint_every=0)
    with pytest.raises(ValueError, match="guard='rollback': must come with out"):
        run(replace(CONFIG, guard="rollback"), environment=noisy())


def infinite(hyper):
    """Return an optimiser whose updates are infinite for any gradient."""

    def update(updates, state, params=None):
        return jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.inf), updates), state

    return optax.GradientTransformation(lambda params: (), update)


def test_parameters_that_overflow_with_a_finite_gradient_are_found_at_the_end_of_the_chunk():
    trainer = make_trainer(CONFIG, environment=noisy(), optimizer=infinite)
    state = quick_jit(trainer.init)(jax.random.key(0))
    _, metrics = quick_jit(trainer.chunk(1))(state)
    assert (int(metrics.skipped), int(metrics.lost)) == (0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["skip", "stop"])
def test_lost_parameters_end_the_run_in_every_mode(mode):
    with pytest.raises(RunFailed, match=r"not finite in chunk 1.*now not finite: agent\.params"):
        run(replace(CONFIG, guard=mode), environment=noisy(), optimizer=infinite)

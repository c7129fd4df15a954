"""Pictures: the torsos in training, and learning from frames of 84x84."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdqn
from jaxdqn.config.presets import preset
from jaxdqn.envs import make_environment
from jaxdqn.run.runner import run
from jaxdqn.training.trainer import make_trainer
from tests.studies import ROOT
from tests.toys import quick_jit

GAME = "pixels:bat-and-ball"
SMALL = {"num_envs": 4, "log_every": 64, "total_rows": 512}
SHAPES = {
    "btr": {**SMALL, "batch_size": 8, "replay_capacity": 512, "warmup_rows": 64},
    "pqn": {**SMALL, "rollout_length": 4, "minibatches": 2, "network": "hadamax"},
}


@pytest.mark.parametrize("name", ["pqn", pytest.param("btr", marks=pytest.mark.slow)])
def test_a_step_on_frames_of_84x84_has_the_shapes_of_its_state(name):
    """Trace the whole step of each composition; nothing is compiled."""
    trainer = make_trainer(preset(name, env=GAME, **SHAPES[name]))
    state = jax.eval_shape(trainer.init, jax.random.key(0))
    after, metrics = jax.eval_shape(trainer.step, state)
    layout = [
        [(leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(tree)] for tree in (state, after)
    ]
    assert layout[0] == layout[1]
    assert metrics.loss.dtype == jnp.float32


def lamp():
    """Return a game of pictures of 8x8: press the side on which the light is."""

    def observe(side):
        columns = jnp.arange(8)[None, :, None]
        lit = jnp.where(side == 1, columns >= 4, columns < 4)
        return jnp.broadcast_to(jnp.where(lit, 255, 0), (8, 8, 1)).astype(jnp.uint8)

    def reset(key):
        side = jax.random.randint(key, (), 0, 2)
        return (side, jnp.int32(0)), observe(side)

    def step(key, state, action):
        side, age = state
        fresh = jax.random.randint(key, (), 0, 2)
        return (fresh, age + 1), observe(fresh), (action == side).astype(jnp.float32), age == 7

    return make_environment(reset, step, name="lamp", num_actions=2)


LEARNERS = {
    "btr": {
        **preset("btr").__dict__, "env": "CartPole-v1", "network": "impala", "pool_size": 1,
        "spectral_norm": True, "dense_size": 16, "torso_width": 1, "hidden_sizes": (16,),
        "num_envs": 4, "batch_size": 16, "replay_capacity": 1024, "warmup_rows": 64,
        "total_rows": 2_400, "log_every": 400, "gamma": 0.5, "huber_delta": 1.0,
        "epsilon_decay_rows": 400, "learning_rate": 3e-3, "target_period": 20,
        "solve_return": None, "stop_when": "never", "eval_every": 0,
        "learning_rate_schedule": "constant",
    },
    "hadamax": {
        "algorithm": "pqn", "loss": "squared", "optimizer": "radam", "network": "hadamax",
        "layer_norm": True, "dense_size": 16, "num_envs": 8, "rollout_length": 8, "minibatches": 4,
        "gamma": 0.5, "learning_rate": 3e-3, "total_rows": 4_096, "epsilon_decay_rows": 1_000,
        "log_every": 512, "eval_every": 0, "clip_norm": 10.0,
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNERS)
def test_every_parameter_of_a_step_changes(name):
    fields = LEARNERS[name]
    config = jaxdqn.Config(**fields)
    trainer = make_trainer(config, environment=lamp())
    before = quick_jit(trainer.init)(jax.random.key(0))
    after, metrics = quick_jit(lambda state: trainer.chunk(6)(state))(before)
    assert int(np.sum(metrics.skipped)) == 0
    changed = jax.tree.map(
        lambda a, b: bool((a != b).any()), before.agent.params, after.agent.params
    )
    assert all(jax.tree.leaves(changed)), changed


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNERS)
def test_the_lamp_is_learned(name, tmp_path):
    result = run(jaxdqn.Config(**LEARNERS[name]), environment=lamp(), out=tmp_path / "run")
    # Eight presses an episode; random ones are right four times.
    assert result.summary["eval_return_mean"] > 7.5


@pytest.mark.slow
def test_bat_and_ball_is_learned_from_frames(tmp_path):
    """About ten minutes of processor time: the return is above that of random actions, -3.5."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "jaxdqn", "run", "pixels", "--total-rows", "64000"]
    subprocess.run([*command, "--out", str(out)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    last = json.loads((out / "evaluations.jsonl").read_text().splitlines()[-1])
    half = 1.96 * last["return_std"] / last["episodes"] ** 0.5
    assert last["return_mean"] - half > -3.5 + 2, last


def test_the_preset_is_small_enough_for_a_laptop():
    config = preset("pixels")
    assert config.replay_capacity * 84 * 84 < 2**28

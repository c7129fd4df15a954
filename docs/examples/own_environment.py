"""Train in an environment of your own: a boat on a river that drifts and has one landing place."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxdqn
from jaxdqn.__main__ import main as command
from jaxdqn.run import run

WIDTH, LENGTH = 9, 12
LANDING = WIDTH // 2


def reset(key):
    """Start on a random column of the first row. The state is (column, row)."""
    column = jax.random.randint(key, (), 0, WIDTH)
    state = jnp.stack([column, 0])
    return state, observe(state)


def step(key, state, action):
    """Steer left, straight or right (actions 0, 1, 2). The current may push the boat aside."""
    drift = jax.random.choice(key, jnp.array([-1, 0, 0, 1]))
    column = jnp.clip(state[0] + (action - 1) + drift, 0, WIDTH - 1)
    state = jnp.stack([column, state[1] + 1])
    landed = state[1] == LENGTH
    distance = jnp.abs(column - LANDING)
    reward = jnp.where(landed, 1.0 - 0.5 * distance, 0.0)
    return state, observe(state), reward, landed


def observe(state):
    """Return the column as a one-hot vector and the distance still to go, float32 [WIDTH + 1]."""
    to_go = (LENGTH - state[1]) / LENGTH
    return jnp.append(jax.nn.one_hot(state[0], WIDTH), to_go)


def render(state):
    """Draw a state: uint8 [height, width, 3], called on the host."""
    frame = np.full((LENGTH + 1, WIDTH, 3), (150, 200, 235), np.uint8)
    frame[LENGTH, LANDING] = (0, 120, 70)
    column, row = np.asarray(state)
    frame[row, column] = (200, 60, 0)
    return frame.repeat(24, axis=0).repeat(24, axis=1)


def make():
    """Build the environment; the command line takes it as own_environment.py:make."""
    return jaxdqn.make_environment(
        reset, step, name="river", num_actions=3, max_episode_steps=LENGTH, render=render
    )


if __name__ == "__main__":
    # --environment makes the run directory remember the environment, so that `evaluate` finds it.
    arguments = "--total-rows 100000 --n-step 3 --loss squared --num-envs 64 --eval-every 25000"
    own = ["--environment", f"{__file__}:make"]
    command(["run", "dqn", *own, *arguments.split(), "--out", "runs/river"])
    command(["evaluate", "runs/river", "--episodes", "1000", "--video", "river.gif"])

    # The same from Python, with the environment as an object. Without `out` nothing is written.
    config = jaxdqn.Config(
        env="river", total_rows=20_000, loss="squared", eval_every=0, eval_episodes=1000
    )
    result = run(config, environment=make())
    print("return after 20,000 rows:", round(result.summary["eval_return_mean"], 2))

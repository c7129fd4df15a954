"""Atari games: the rows, lives and frame stacks of ALE's own vector environment."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ale_py.vector_env import AtariVectorEnv
from PIL import Image

from jaxdqn.envs.frame_stack import initial_frames, push_frame
from jaxdqn.envs.vector import host_environment
from jaxdqn.replay.ring import gather_obs, init_ring, write
from jaxdqn.training.learner import example_row
from jaxdqn.types import Row

MACHADO = {"repeat_action_probability": 0.25, "full_action_space": True, "noop_max": 0}
CLASSIC = {"repeat_action_probability": 0.0, "full_action_space": False, "noop_max": 30}
PLAIN = {"reward_clipping": False, "use_fire_reset": False, "num_threads": 1}


def play(vector, num_actions, steps, seed=5):
    """Yield each time step with the actions that led to it, None for the reset."""
    rng = np.random.default_rng(seed)
    timestep = vector.reset(seed)
    yield None, timestep
    for _ in range(steps):
        actions = rng.integers(0, num_actions, len(timestep.first)).astype(np.int32)
        timestep = vector.step(actions)
        yield actions, timestep


@pytest.mark.parametrize("protocol", ["classic", pytest.param("machado", marks=pytest.mark.slow)])
def test_rows_are_those_of_ale_stepped_by_hand_across_lives_and_games(protocol):
    fields = {"machado": MACHADO, "classic": CLASSIC}[protocol]
    host = host_environment("ale:breakout", {"protocol": protocol, "num_threads": 1})
    assert host.spec.num_actions == {"machado": 18, "classic": 4}[protocol]
    assert host.spec.max_episode_steps == 27_000
    plain = AtariVectorEnv("breakout", 2, stack_num=1, **PLAIN, **fields)
    over, lives = np.zeros(2, bool), np.zeros(2, int)
    games = lost_lives = 0
    for actions, timestep in play(host.make(2), host.spec.num_actions, 260):
        no = np.zeros(2, bool)
        if actions is None:
            obs, info = plain.reset(seed=5)
            reward, ends, first = np.zeros(2), no, ~no
        else:
            obs, reward, ends, truncated, info = plain.step(actions)
            assert not truncated.any()
            first, over = over, ends
        lost = (info["lives"] < lives) & ~first if protocol == "classic" else no
        lives = info["lives"].copy()
        np.testing.assert_array_equal(timestep.obs, obs[:, 0])
        np.testing.assert_array_equal(timestep.reward, reward)
        np.testing.assert_array_equal(timestep.terminated, ends | lost)
        np.testing.assert_array_equal(timestep.first, first)
        assert not timestep.truncated.any()
        games, lost_lives = games + ends.sum(), lost_lives + (lost & ~ends).sum()
    assert games >= 2
    assert lost_lives >= 8 * (protocol == "classic")
    assert timestep.reward.dtype == np.float32


def test_evaluations_play_whole_games_with_the_dynamics_of_training():
    host = host_environment("ale:breakout", {"protocol": "classic", "num_threads": 1})
    assert host.spec.terminates_within_episodes
    judged = host.to_evaluate().make(2)
    ends = terminations = 0
    for (_, one), (_, other) in zip(play(host.make(2), 4, 200), play(judged, 4, 200), strict=True):
        np.testing.assert_array_equal(one.obs, other.obs)
        np.testing.assert_array_equal(one.first, other.first)
        assert (one.terminated >= other.terminated).all()
        ends, terminations = ends + other.terminated.sum(), terminations + one.terminated.sum()
    assert ends >= 2
    assert terminations >= 5 * ends


def test_the_limit_of_frames_truncates():
    arguments = {"max_num_frames_per_episode": 50, "num_threads": 1}
    host = host_environment("ale:pong", arguments)
    assert host.spec.max_episode_steps == 13
    assert host.spec.arguments == ("max_num_frames_per_episode=50",)
    steps = [timestep for _, timestep in play(host.make(1), 18, 27)]
    assert [t for t, step in enumerate(steps) if step.truncated[0]] == [13, 27]
    assert [t for t, step in enumerate(steps) if step.first[0]] == [0, 14]
    assert not any(step.terminated[0] for step in steps)


def test_a_drawn_game_is_the_same_game_with_frames_in_colour():
    host = host_environment("ale:breakout", {"num_threads": 1})
    drawable = host.make_drawable()
    games = 0
    for (_, one), (_, other) in zip(
        play(drawable, 18, 260), play(host.make(1), 18, 260), strict=True
    ):
        np.testing.assert_array_equal(one.obs, other.obs)
        np.testing.assert_array_equal(one.reward, other.reward)
        np.testing.assert_array_equal(one.first, other.first)
        frame = drawable.render()
        assert (frame.dtype, frame.shape) == (np.uint8, (210, 160, 3))
        grey = Image.fromarray(frame).convert("L").resize((84, 84), Image.Resampling.BOX)
        difference = np.abs(np.asarray(grey, int) - one.obs[0])
        assert difference.mean() < 3  # 33 between frames of two games
        games += one.first.sum()
    assert games >= 2
    assert len(np.unique(frame.reshape(-1, 3), axis=0)) > 5
    drawable.close()


def test_equal_seeds_give_equal_games_also_above_the_range_of_one_seed():
    vector = host_environment("ale:breakout", {"num_threads": 1}).make(2)
    largest = 2**31 - 1
    one, again, other = (
        np.stack([timestep.obs for _, timestep in play(vector, 18, 60, seed)])
        for seed in (largest, largest, 7)
    )
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)
    # Sticky actions differ between the environments.
    assert not np.array_equal(one[:, 0], one[:, 1])


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"protocol": "machado"}, id="machado", marks=pytest.mark.slow),
        pytest.param({"protocol": "classic"}, id="classic"),
        pytest.param(
            {"protocol": "machado", "max_num_frames_per_episode": 190},
            id="machado, truncated",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_stacks_of_the_ring_and_of_acting_are_those_of_the_emulator(fields):
    """800 frames each, over resets, lost lives and time limits."""
    host = host_environment("ale:breakout", {**fields, "num_threads": 1})
    protocol = {"classic": CLASSIC, "machado": MACHADO}[fields["protocol"]]
    limit = {key: value for key, value in fields.items() if key != "protocol"}
    emulator = AtariVectorEnv("breakout", 2, stack_num=4, **PLAIN, **protocol, **limit)
    steps, push = 399, jax.jit(push_frame)
    wanted, rows, frames = [], [], None
    for actions, timestep in play(host.make(2), host.spec.num_actions, steps):
        if actions is None:
            wanted.append(emulator.reset(seed=5)[0].copy())
            frames = initial_frames(jnp.asarray(timestep.obs), 4)
        else:
            wanted.append(emulator.step(actions)[0].copy())
            frames = push(frames, timestep.obs, timestep.first)
        if len(rows) % 20 < 8:
            np.testing.assert_array_equal(np.moveaxis(frames, -1, 1), wanted[-1])
        rows.append((timestep.obs, timestep.first))
    obs, first = (np.stack(leaves) for leaves in zip(*rows, strict=True))
    assert 4 <= first.sum() < 60
    no = np.zeros(first.shape, bool)
    rows = Row(obs, first, no.astype(np.int32), no.astype(np.float32), no, no)

    @jax.jit
    def gather(rows, index):
        ring = write(init_ring(example_row(host.spec), 2, steps + 1), rows)
        return gather_obs(ring, index, frame_stack=4)

    for start in range(0, 2 * (steps + 1), 400):
        index = np.arange(start, start + 400, dtype=np.int32)
        expected = np.stack([wanted[flat // 2][flat % 2] for flat in index])
        np.testing.assert_array_equal(np.moveaxis(gather(rows, index), -1, 1), expected)


@pytest.mark.parametrize(
    ("game", "arguments", "message"),
    [
        ("poong", {}, "env='ale:poong': must be a ROM of ale-py; nearest: ale:pong, ale:pooyan"),
        (
            "ALE/SpaceInvaders-v5",
            {},
            "env='ale:ALE/SpaceInvaders-v5': must be a ROM of ale-py; nearest: ale:space_invaders, "
            "ale:space_war",
        ),
        ("zzz", {}, "env='ale:zzz': must be a ROM of ale-py, such as ale:pong"),
        ("combat", {}, "env='ale:combat': must be a game for one player"),
        (
            "pong",
            {"protocol": "clasic"},
            "env_args='protocol=clasic': must be a known protocol; nearest: classic",
        ),
        (
            "pong",
            {"noop": 3},
            "env_args='noop': must be an argument of ale:pong; nearest: noop_max",
        ),
        ("pong", {"noop_max": -1}, "env_args='noop_max=-1': must be a whole number of at least 0"),
        ("pong", {"maxpool": 1}, "env_args='maxpool=1': must be true or false"),
        (
            "pong",
            {"repeat_action_probability": 1.5},
            "env_args='repeat_action_probability=1.5': must be a number from 0 to 1",
        ),
        (
            "pong",
            {"stack_num": 4},
            "env_args='stack_num': must be left out; use --frame-stack, which stores each frame "
            "once",
        ),
    ],
)
def test_what_cannot_be_made_is_one_line_that_names_it(game, arguments, message):
    with pytest.raises(ValueError, match=r"^env") as raised:
        host_environment(f"ale:{game}", arguments)
    assert str(raised.value) == message


def test_closing_ends_the_threads_of_the_games():
    tasks = "/proc/self/task"
    if not os.path.isdir(tasks):
        pytest.skip("threads of the system are listed in /proc on Linux only")
    vector = host_environment("ale:pong", {"num_threads": 3}).make(3)
    before = len(os.listdir(tasks))
    vector.close()
    assert before - len(os.listdir(tasks)) >= 2

"""Bat-and-ball: physics against a NumPy twin and by hand, frames by pixel, ends of episodes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdqn
from jaxdqn.envs import bat_and_ball
from jaxdqn.envs.bat_and_ball import FALL, LEFT, RIGHT, STAY, CourtState, best_return

NAME = "pixels:bat-and-ball"
FIELDS = CourtState._fields
WIDTH, BALLS = 16, 5


@pytest.fixture(scope="module")
def game():
    reset, step = bat_and_ball.make_game(WIDTH, BALLS)
    return jax.jit(reset), jax.jit(step)


def state(**fields):
    at = {"ball_x": 40, "ball_y": 0, "drift": 0, "rising": 0, "bat_x": 34, "balls": BALLS}
    return CourtState(**{name: jnp.int32(value) for name, value in {**at, **fields}.items()})


def numbers(state):
    return {name: int(getattr(state, name)) for name in FIELDS}


def twin(s, action, serve):
    """Advance the game by one step; ``serve`` is the random (edge, drift) of the step's key."""
    s = dict(s)
    s["bat_x"] = min(max(s["bat_x"] + {STAY: 0, LEFT: -4, RIGHT: 4}[action], 0), 84 - WIDTH)
    s["ball_y"] += -4 if s["rising"] else 4
    s["ball_x"] += s["drift"]
    if s["ball_x"] < 0:
        s["ball_x"], s["drift"] = -s["ball_x"], -s["drift"]
    elif s["ball_x"] > 80:
        s["ball_x"], s["drift"] = 160 - s["ball_x"], -s["drift"]
    reward = 0.0
    if s["ball_y"] == 76:
        ball = set(range(s["ball_x"], s["ball_x"] + 4))
        if ball & set(range(s["bat_x"], s["bat_x"] + WIDTH)):
            reward, s["rising"] = 1.0, 1
        else:
            reward, s["balls"], s["ball_y"] = -1.0, s["balls"] - 1, 0
            s["ball_x"], s["drift"] = serve
    elif s["ball_y"] == 0:
        s["rising"], s["drift"] = 0, serve[1]
    return s, reward, s["balls"] == 0


@pytest.mark.parametrize("seed", range(3))
def test_the_game_is_that_of_a_twin_through_an_episode(game, seed):
    reset, step = game
    actions = np.random.default_rng(seed).integers(0, 3, 400)
    keys = jax.random.split(jax.random.key(seed), 401)
    edges, drifts = map(np.asarray, jax.vmap(bat_and_ball._serve)(keys))
    current, _ = reset(keys[400])
    expected = numbers(current)
    assert expected == {**numbers(state()), "ball_x": edges[400], "drift": drifts[400]}
    for t in range(400):
        current, view, reward, terminated = step(keys[t], current, jnp.int32(actions[t]))
        serve = int(edges[t]), int(drifts[t])
        expected, reward_there, over = twin(expected, int(actions[t]), serve)
        assert numbers(current) == expected, t
        assert (float(reward), bool(terminated)) == (reward_there, over)
        assert view.tolist() == [expected["ball_x"], expected["ball_y"], expected["bat_x"]]
        if over:
            break
    assert t < 399, "random actions lose all balls"


@pytest.mark.parametrize(
    ("before", "action", "after", "reward"),
    [
        # falls straight, the bat stays
        ({}, STAY, {"ball_y": 4}, 0),
        # bounces off the right wall: 79 + 3 = 82, two beyond 80
        ({"ball_x": 79, "drift": 3}, STAY, {"ball_x": 78, "ball_y": 4, "drift": -3}, 0),
        # and off the left one: 1 - 3 = -2
        ({"ball_x": 1, "drift": -3}, STAY, {"ball_x": 2, "ball_y": 4, "drift": 3}, 0),
        # touches the wall without crossing it, which is no bounce yet
        ({"ball_x": 77, "drift": 3}, STAY, {"ball_x": 80, "ball_y": 4, "drift": 3}, 0),
        # the bat stops at the walls
        ({"bat_x": 2}, LEFT, {"bat_x": 0, "ball_y": 4}, 0),
        ({"bat_x": 66}, RIGHT, {"bat_x": 68, "ball_y": 4}, 0),
        # returned: the last column of the ball over the first of the bat, which moves first
        ({"ball_x": 35, "ball_y": 72}, RIGHT, {"ball_y": 76, "bat_x": 38, "rising": 1}, 1),
        # ... and the first column of the ball over the last of the bat
        ({"ball_x": 45, "ball_y": 72}, LEFT, {"ball_y": 76, "bat_x": 30, "rising": 1}, 1),
        # rises with the drift that it had
        ({"ball_y": 76, "rising": 1, "drift": 2}, STAY, {"ball_x": 42, "ball_y": 72}, 0),
    ],
)
def test_a_step_worked_by_hand(game, before, action, after, reward):
    current, _, got, terminated = game[1](jax.random.key(0), state(**before), jnp.int32(action))
    assert numbers(current) == {**numbers(state(**before)), **after}
    assert (float(got), bool(terminated)) == (reward, False)


@pytest.mark.parametrize(("edge", "action"), [(34, RIGHT), (46, LEFT)])
def test_a_ball_one_pixel_beside_the_bat_is_lost_and_served_again(game, edge, action):
    key = jax.random.key(3)
    lost, _, reward, over = game[1](key, state(ball_x=edge, ball_y=72), jnp.int32(action))
    served = [int(value) for value in bat_and_ball._serve(key)]
    assert [int(lost.ball_x), int(lost.drift), int(lost.ball_y)] == [*served, 0]
    assert (int(lost.balls), float(reward), bool(over)) == (4, -1.0, False)
    *_, over = game[1](key, state(ball_x=edge, ball_y=72, balls=1), jnp.int32(action))
    assert bool(over)


def test_serves_and_angles_are_uniform_over_the_court():
    edges, drifts = jax.vmap(bat_and_ball._serve)(jax.random.split(jax.random.key(0), 40_000))
    for values, low, high in ((edges, 0, 80), (drifts, -3, 3)):
        counts = np.bincount(np.asarray(values) - low, minlength=high - low + 1)
        cells = high - low + 1
        assert len(counts) == cells
        chi_square = np.sum((counts - 40_000 / cells) ** 2) / (40_000 / cells)
        assert chi_square < cells - 1 + 5 * np.sqrt(2 * (cells - 1))


@pytest.mark.parametrize("view", [(0, 0, 0), (80, 76, 68), (13, 40, 34), (33, 76, 30)])
def test_a_frame_is_drawn_pixel_by_pixel(view):
    expected = np.zeros((84, 84), np.uint8)
    for row in range(84):
        for column in range(84):
            if row >= 80 and view[2] <= column < view[2] + WIDTH:
                expected[row, column] = 160
            if view[1] <= row < view[1] + 4 and view[0] <= column < view[0] + 4:
                expected[row, column] = 255
    frame = bat_and_ball.draw_frame(jnp.asarray(view, jnp.int32), WIDTH)
    assert frame.dtype == jnp.uint8
    np.testing.assert_array_equal(frame, expected)
    # The picture for videos shows the same, each pixel as 4 x 4 of one colour.
    at = jax.tree.map(np.asarray, state(ball_x=view[0], ball_y=view[1], bat_x=view[2]))
    picture = bat_and_ball.render(at, WIDTH)
    assert (picture.shape, picture.dtype) == ((336, 336, 3), np.uint8)
    np.testing.assert_array_equal(picture, np.kron(picture[::4, ::4], np.ones((4, 4, 1), int)))
    small = picture[::4, ::4]
    colours = [{tuple(colour) for colour in small[expected == grey]} for grey in (0, 160, 255)]
    assert [len(found) for found in colours] == [1, 1, 1]
    assert len(set.union(*colours)) == 3


def to_the_ball(court):
    """Move the middle of the bat below the ball."""
    apart = court.ball_x + 2 - (court.bat_x + WIDTH // 2)
    return jnp.where(apart > 2, RIGHT, jnp.where(apart < -2, LEFT, STAY))


def played(environment, policy, steps, envs=64, seed=0):
    """Return the rows of ``policy(key, court)``, leaves [steps, envs]."""
    reset_key, key = jax.random.split(jax.random.key(seed))

    @jax.jit
    def run():
        first, _ = jax.vmap(environment.reset)(jax.random.split(reset_key, envs))

        def body(states, key):
            actions = jax.vmap(policy)(jax.random.split(key, envs), states.inner.inner)
            step_keys = jax.random.split(jax.random.fold_in(key, 1), envs)
            states, timestep = jax.vmap(environment.step)(step_keys, states, actions)
            return states, timestep._replace(obs=timestep.obs[:, :, 0])

        return jax.lax.scan(body, first, jax.random.split(key, steps))[1]

    return jax.tree.map(np.asarray, run())


def test_a_bat_that_follows_the_ball_has_the_best_return_until_the_time_limit():
    environment = jaxdqn.make_env(NAME)
    rows = played(environment, lambda key, court: to_the_ball(court), 401)
    assert best_return(400) == 11  # 19 + 38 k <= 400 for k = 0 to 10
    np.testing.assert_array_equal(rows.reward.sum(0), 11)
    assert not rows.terminated.any()
    np.testing.assert_array_equal(np.flatnonzero(rows.truncated[:, 0]), [399])
    assert rows.truncated[399].all()
    assert rows.first[400].all(), "the step after the end of an episode resets"
    assert not rows.first[:400].any()


def test_random_actions_lose_all_balls_and_the_documented_return():
    environment = jaxdqn.make_env(NAME)
    rows = played(environment, lambda key, _: jax.random.randint(key, (), 0, 3), 400, envs=256)
    ended = rows.terminated | rows.truncated
    assert ended.any(0).mean() > 0.95
    before = np.cumsum(ended, 0) - ended == 0
    returns = np.sum(rows.reward * before, 0)
    assert abs(np.mean(returns) + 3.5) < 4 * np.std(returns) / 16  # -3.49 +- 0.12 over 512
    one_ball = np.sum((rows.reward < 0) * before, 0)
    assert set(one_ball[rows.terminated.any(0) & ended.any(0)]) == {5}


def test_equal_keys_play_equal_episodes_and_others_do_not():
    environment = jaxdqn.make_env(NAME)
    one, same, other = (
        played(environment, lambda key, court: to_the_ball(court), 60, envs=2, seed=seed).obs
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_arguments_change_the_game():
    environment = jaxdqn.make_env(NAME, bat_width=40, balls=1, max_episode_steps=FALL + 3)
    assert environment.spec.arguments == (
        "balls=1",
        "bat_width=40",
        f"max_episode_steps={FALL + 3}",
    )
    assert environment.spec.max_episode_steps == FALL + 3
    states, timestep = environment.reset(jax.random.key(0))
    assert int(np.sum(np.asarray(timestep.obs)[80] == 160)) == 40
    assert environment.render(states).shape == (336, 336, 3)
    # The bat of 40 pixels stands in the middle: balls over it are returned, others lost.
    rows = played(environment, lambda *_: jnp.int32(STAY), FALL)
    assert set(rows.reward[-1].tolist()) == {-1.0, 1.0}
    np.testing.assert_array_equal(rows.terminated[-1], rows.reward[-1] < 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bat_width": 4}, "env_args='bat_width=4': must be between 8 and 84"),
        ({"bat_width": 85}, "env_args='bat_width=85': must be between 8 and 84"),
        ({"balls": 0}, "env_args='balls=0': must be at least 1"),
        ({"balls": 1.5}, "env_args='balls=1.5': must be a whole number"),
        ({"max_episode_steps": 0}, "env_args='max_episode_steps=0': must be at least 1"),
        ({"lives": 3}, "env_args='lives': must be an argument of pixels:bat-and-ball; nearest"),
    ],
)
def test_arguments_out_of_range_are_rejected(arguments, message):
    with pytest.raises(ValueError, match=rf"^{message}"):
        jaxdqn.make_env(NAME, **arguments)


def test_an_unknown_game_is_rejected():
    with pytest.raises(ValueError, match=r"env='pixels:pong': must be pixels:ID, with ID"):
        jaxdqn.make_env("pixels:pong")

"""Human-normalised scores of Atari games."""

import pytest
from ale_py import roms

from jaxdqn.envs.vector.atari_scores import SCORES, human_normalized


def test_random_actions_score_zero_and_the_human_one():
    assert human_normalized("ale:breakout", 1.7) == 0
    assert human_normalized("ale:breakout", 30.5) == 1
    # DQN on Pong as published, 18.9: (18.9 + 20.7) / (14.6 + 20.7), 112 percent in Wang et al. 2016
    assert human_normalized("ale:pong", 18.9) == pytest.approx(1.12, abs=5e-3)


def test_the_57_games_are_roms_of_ale_and_others_have_no_score():
    assert len(SCORES) == 57
    assert SCORES.keys() <= set(roms.get_all_rom_ids())
    assert all(human > random for random, human in SCORES.values())
    for env in ("ale:tetris", "CartPole-v1", "gymnasium:pong", "pong"):
        assert human_normalized(env, 3.0) is None

"""Runs in Atari games: true scores in the records, and whole games in evaluations."""

import numpy as np
import pytest

from jaxdqn.config.config import replace
from jaxdqn.envs.vector.atari_scores import human_normalized
from jaxdqn.run.runner import run
from jaxdqn.storage.jsonl import read_lines
from tests.toys import tiny

CONFIG = tiny(
    env="ale:boxing", network="mlp", hidden_sizes=(4,), frame_stack=2, clip_rewards=True,
    env_args=("protocol=classic", "img_height=6", "img_width=6", "max_num_frames_per_episode=320"),
    num_envs=2, total_rows=400, log_every=200, eval_every=0, eval_episodes=2, checkpoint_every=200,
)  # fmt: skip


@pytest.mark.slow
def test_a_run_by_name_has_true_scores_in_its_records_and_is_resumed(tmp_path):
    out = tmp_path / "run"
    result = run(CONFIG, out=out)
    summary = result.summary
    assert summary["env"] == "ale:boxing"
    assert summary["eval_terminated_share"] == 0  # the limit of frames ends the games
    rewards = np.asarray(result.state.replay.ring.rows.reward)
    assert set(np.unique(rewards)) <= {-1, 0, 1}
    assert 0 < sum(record["episodes"] for record in read_lines(out / "metrics.jsonl")) < 8
    resumed = run(replace(CONFIG, total_rows=600), out=out, resume=True)
    assert resumed.summary["rows"] > summary["rows"]


@pytest.mark.slow
def test_the_score_is_normalised_and_another_protocol_is_another_run(tmp_path):
    summary = run(replace(CONFIG, total_rows=100), out=tmp_path / "run").summary
    score = summary["human_normalized_score"]
    assert score == human_normalized("ale:boxing", summary["eval_return_mean"])
    other = replace(CONFIG, total_rows=200, env_args=CONFIG.env_args[1:])
    with pytest.raises(ValueError, match=r"^env_args=.* must be .*protocol=classic"):
        run(other, out=tmp_path / "run", resume=True)

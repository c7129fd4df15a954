"""Runs in Atari games: true scores in the records, and whole games in evaluations."""

import re

import numpy as np
import pytest
from PIL import Image

from jaxdqn.cli.evaluate import main as evaluate
from jaxdqn.config.config import replace
from jaxdqn.config.presets import preset
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

    assert evaluate([str(out), "--episodes", "2", "--video", str(tmp_path / "game.gif")]) == 0
    with Image.open(tmp_path / "game.gif") as video:
        assert video.n_frames == 81  # the first, and one for each step of four frames
        video.seek(40)
        colours = video.convert("RGB").getcolors(1 << 16)
    assert max(max(colour) - min(colour) for _, colour in colours) > 60


@pytest.mark.slow
def test_the_score_is_normalised_and_another_protocol_is_another_run(tmp_path):
    summary = run(replace(CONFIG, total_rows=100), out=tmp_path / "run").summary
    score = summary["human_normalized_score"]
    assert score == human_normalized("ale:boxing", summary["eval_return_mean"])
    other = replace(CONFIG, total_rows=200, env_args=CONFIG.env_args[1:])
    with pytest.raises(ValueError, match=r"^env_args=.* must be .*protocol=classic"):
        run(other, out=tmp_path / "run", resume=True)


SMALL = {"num_envs": 16, "batch_size": 8, "replay_capacity": 4_096, "warmup_rows": 512}
PRESETS = {
    "atari": {**SMALL, "replay_ratio": None, "gradient_steps": 1},
    "atari-classic": {**SMALL, "replay_ratio": None, "gradient_steps": 1},
    "pqn": {"num_envs": 16, "env": "ale:pong"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_trains_and_is_resumed_and_evaluated(name, tmp_path, capsys):
    out = tmp_path / "run"
    short = ("max_num_frames_per_episode=400",)
    protocol = ("protocol=classic",) if name == "atari-classic" else ()
    config = preset(
        name, **PRESETS[name], env_args=(*protocol, *short), total_rows=1_024, log_every=512,
        eval_every=0, eval_episodes=2, checkpoint_every=512,
    )  # fmt: skip
    summary = run(config, out=out).summary
    assert summary["rows"] >= 1_024
    assert summary["gradient_steps"] > 0
    assert summary["skipped_gradient_steps"] == 0
    resumed = run(replace(config, total_rows=2_048), out=out, resume=True).summary
    assert resumed["rows"] > summary["rows"]
    assert resumed["gradient_steps"] > summary["gradient_steps"]
    # Rewards are -1, 0 and 1 in Pong, and 100 vector steps are too short for a game.
    returns = [record["return_mean"] for record in read_lines(out / "evaluations.jsonl")]
    assert all(-21 <= value <= 21 for value in returns)
    assert evaluate([str(out), "--episodes", "2"]) == 0
    assert re.search(r"standard error of 2 \S*greedy episodes", capsys.readouterr().out)

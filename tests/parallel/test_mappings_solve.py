"""CartPole is solved with every mapping over devices, from the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOUR = ("--virtual-devices", "4", "--devices", "4")
MAPPING_FLAGS = {
    "shard_map": (*FOUR, "--mapping", "shard_map"),
    "pmap": (*FOUR, "--mapping", "pmap"),
    # The preset's layer of 64 is too small to be sharded, which is an error.
    "data x model": (
        *("--virtual-devices", "4", "--mesh", "data=2,model=2"),
        *("--hidden-sizes", "512", "64"),
    ),
    "accumulated": ("--virtual-devices", "2", "--devices", "2", "--accumulate", "2"),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", MAPPING_FLAGS)
def test_cartpole_is_solved_over_devices(way, tmp_path):
    out = tmp_path / "run"
    subprocess.run(
        [
            *(sys.executable, "-m", "jaxdqn", "run", "cartpole", *MAPPING_FLAGS[way]),
            "--out",
            str(out),
        ],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "NPROC"},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    summary = json.loads((out / "summary.json").read_text())
    assert summary["solved"]
    config = json.loads((out / "config.json").read_text())
    used = {name: config[name] for name in ("devices", "mapping", "model_devices", "accumulate")}
    assert used == {
        "devices": 2 if way == "accumulated" else 4,
        "mapping": "pmap" if way == "pmap" else "shard_map",
        "model_devices": 2 if way == "data x model" else 1,
        "accumulate": 2 if way == "accumulated" else 1,
    }

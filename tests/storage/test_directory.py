"""Run directories: simultaneous claims of one name, and invalid paths and configurations."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from jaxdqn.storage.directory import check_unused, claim, read_config


def test_runs_that_start_together_get_a_directory_each(tmp_path):
    base = tmp_path / "runs" / "one"
    with ThreadPoolExecutor(8) as pool:
        claimed = list(pool.map(lambda _: claim(base), range(24)))
    assert len(set(claimed)) == 24
    assert sorted(base.parent.iterdir()) == sorted(claimed)
    names = ["one", *(f"one-{index}" for index in range(2, 25))]
    assert sorted(path.name for path in claimed) == sorted(names)


def test_a_directory_that_cannot_be_claimed_is_one_line(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"out='.*file/run': must be writable"):
        claim(tmp_path / "file" / "run")
    if os.geteuid() != 0:
        tmp_path.chmod(0o500)
        with pytest.raises(ValueError, match="must be writable"):
            claim(tmp_path / "run")


def test_a_path_that_is_not_utf8_is_one_line(tmp_path, monkeypatch):
    for check in (check_unused, claim):
        with pytest.raises(ValueError, match=r"out='.*a\\udcff': must be a path in UTF-8"):
            check(tmp_path / "a\udcff")
    with pytest.raises(ValueError, match=r"run='.*a\\udcff': must be a path in UTF-8"):
        read_config(tmp_path / "a\udcff")
    above = tmp_path / "b\udcff"
    above.mkdir()
    monkeypatch.chdir(above)
    with pytest.raises(ValueError, match=r"out='.*b\\udcff/run': must be a path in UTF-8"):
        check_unused("run")


def test_a_run_of_a_newer_version_is_named_with_its_file_and_field(tmp_path):
    file = tmp_path / "config.json"
    file.write_text('{"seed": 1, "warp_factor": 9}')
    with pytest.raises(ValueError, match=r"config\.json: must be of this version .*'warp_factor'"):
        read_config(tmp_path)
    file.write_text('{"seed": 1, "loss": "newest"}')
    with pytest.raises(ValueError, match=r"config\.json: loss='newest': must be one of"):
        read_config(tmp_path)

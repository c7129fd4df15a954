"""A run without a home directory, as in a container that starts under an arbitrary user id."""

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.processes import ROOT

USER = 12345
"""User id without an entry in the password file."""
# The capability is for an interpreter or a checkout in a home directory that is closed to others.
AS_THE_USER = (
    ("setpriv", f"--reuid={USER}", "--clear-groups", "--inh-caps=+dac_read_search",
     "--ambient-caps=+dac_read_search"),
    ("unshare", "--user", f"--map-user={USER}"),
)  # fmt: skip
"""Beginnings of commands that run under that id: as root, and where users may make namespaces."""
OF_A_USER = ("HOME", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR", "MPLCONFIGDIR", "USER",
             "LOGNAME")  # fmt: skip
FAST_TO_COMPILE = "--xla_backend_optimization_level=0"
SMALL = [
    "run", "cartpole", "--total-rows", "4000", "--log-every", "1000", "--eval-every", "2000",
    "--eval-episodes", "3", "--checkpoint-every", "2000",
]  # fmt: skip


@pytest.fixture
def directory():
    """Make a directory that every user can write, unlike ``tmp_path``."""
    with tempfile.TemporaryDirectory() as path:
        Path(path).chmod(0o777)
        yield Path(path)


def python(*arguments, directory, prefix, **variables):
    """Run Python without the environment variables of a user."""
    kept = {name: value for name, value in os.environ.items() if name not in OF_A_USER}
    return subprocess.run(
        [*prefix, sys.executable, *map(str, arguments)],
        cwd=directory,
        env={**kept, "PYTHONPATH": str(ROOT), "XLA_FLAGS": FAST_TO_COMPILE, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def as_the_user(directory):
    """Return the beginning of commands that run under ``USER``; skip the test if none works."""
    with pytest.raises(KeyError):
        pwd.getpwuid(USER)
    for prefix in AS_THE_USER:
        if shutil.which(prefix[0]) is not None:
            code = "import os, jaxdqn; print(os.geteuid())"
            found = python("-c", code, directory=directory, prefix=prefix)
            if found.stdout == f"{USER}\n":
                return prefix
    pytest.skip("no process can be started under another user id that can read this tree")


@pytest.mark.slow
@pytest.mark.parametrize("case", ["no entry", "a home that is no directory"])
def test_a_run_without_a_home_trains_and_says_that_it_has_no_compilation_cache(case, directory):
    if case == "no entry":
        options = {"prefix": as_the_user(directory)}
    else:
        options = {"prefix": (), "HOME": os.devnull}
    options["directory"] = directory
    out = directory / "run"
    done = python("-m", "jaxdqn", *SMALL, "--out", out, **options)
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("warning: no compilation cache: neither XDG_CACHE_HOME nor HOME names")
    assert json.loads((out / "summary.json").read_text())["gradient_steps"] > 0
    assert (out / "curve.png").stat().st_size > 0
    evaluated = python("-m", "jaxdqn", "evaluate", out, "--episodes", 3, **options)
    assert evaluated.returncode == 0, evaluated.stderr

"""Commands of the benchmarks."""

import subprocess
import sys

import pytest

from tests.studies import ROOT

COMMANDS = (
    "throughput", "startup", "reliability", "scaling", "scaling.model", "replay", "versus",
    "techniques", "resets", "held", "driving", "roofline", "accelerator",
)  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_printed_without_importing_jax(name):
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['benchmarks.{name}', '--help']\n"
        "try:\n"
        f"    runpy.run_module('benchmarks.{name}', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "heavy = {'jax', 'gymnax', 'matplotlib', 'orbax'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    command = "jaxdqn compare" if name == "techniques" else f"python -m benchmarks.{name}"
    assert done.stdout.startswith(f"usage: {command} ")


def test_the_package_names_every_command():
    import benchmarks

    for name in COMMANDS:
        assert name in (benchmarks.__doc__ or "")

"""gymnax is imported without the plotting libraries, and they still work."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PLOTTING = "{'seaborn', 'matplotlib.pyplot'} & set(sys.modules)"

CASES = {
    "an environment needs neither": (
        "import sys, jaxdqn\n"
        "jaxdqn.make_env('CartPole-v1')\n"
        f"assert 'gymnax' in sys.modules and not {PLOTTING}\n"
    ),
    "both import after it": (
        "import sys, jaxdqn\n"
        "jaxdqn.make_env('CartPole-v1')\n"
        "import matplotlib.pyplot as plt\n"
        "import matplotlib\n"
        "assert type(plt).__name__ == 'module' and matplotlib.pyplot is plt\n"
        "assert plt.figure().number == 1\n"
    ),
    "both import before it and stay": (
        "import sys\n"
        "import matplotlib.pyplot as plt\n"
        "import jaxdqn\n"
        "jaxdqn.make_env('CartPole-v1')\n"
        "assert sys.modules['matplotlib.pyplot'] is plt\n"
        "from gymnax.environments.misc import rooms\n"
        "assert rooms.plt is plt\n"
    ),
    "an environment needs none installed": (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('matplotlib', 'seaborn'):\n"
        "            raise ModuleNotFoundError(f'no {name}', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import jaxdqn\n"
        "assert jaxdqn.make_env('Breakout-MinAtar').spec.num_actions == 3\n"
        "from gymnax.environments.misc import pong\n"
        "for part in (lambda: pong.plt.figure, lambda: pong.sns.color_palette):\n"
        "    try:\n"
        "        part()\n"
        "    except ModuleNotFoundError:\n"
        "        continue\n"
        "    raise AssertionError('was found')\n"
    ),
    "gymnax draws with the real ones": (
        "import sys, jax, jaxdqn\n"
        "jaxdqn.make_env('FourRooms-misc')\n"
        "import gymnax\n"
        "env, params = gymnax.make('FourRooms-misc')\n"
        "figure, axes = env.render(env.reset(jax.random.key(0), params)[1], params)\n"
        "import matplotlib.pyplot as plt\n"
        "assert plt.fignum_exists(figure.number)\n"
    ),
    "gymnax's visualiser imports": (
        "import jaxdqn\n"
        "jaxdqn.make_env('CartPole-v1')\n"
        "from gymnax.visualize import Visualizer\n"
        "from gymnax.visualize import vis_minatar\n"
        "assert vis_minatar.sns.color_palette('cubehelix', 3)\n"
        "from gymnax.environments.misc import pong\n"
        "assert pong.sns.color_palette is vis_minatar.sns.color_palette\n"
    ),
}


FAST = ("an environment needs neither", "both import after it")


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(code, id=name, marks=[] if name in FAST else pytest.mark.slow)
        for name, code in CASES.items()
    ],
)
def test_in_a_fresh_process(code):
    in_process(code, backend="agg")


def test_a_backend_that_is_not_installed_does_not_matter(tmp_path):
    """In the shell of a notebook, MPLBACKEND names the notebook's own backend."""
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "import jaxdqn\n"
        "jaxdqn.make_env('CartPole-v1')\n"
        "from jaxdqn.cli.plot import main\n"
        "from jaxdqn.config.config import Config\n"
        "from jaxdqn.storage.directory import create\n"
        "from contextlib import ExitStack\n"
        f"run = create({str(tmp_path / 'run')!r}, Config(), ExitStack())\n"
        "sys.exit(main([str(run), '--out', str(run / 'curve.png')]))\n"
    )
    in_process(code, backend="module://not_installed.backend")
    assert (tmp_path / "run" / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_an_installed_backend_of_the_environment_is_kept():
    code = (
        "import os, jaxdqn\n"
        "jaxdqn.make_env('CartPole-v1')\n"
        "import matplotlib.pyplot as plt\n"
        "assert plt.get_backend() == 'svg'\n"
        "assert os.environ['MPLBACKEND'] == 'svg'\n"
    )
    in_process(code, backend="svg")


def in_process(code, backend):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": backend}
    command = [sys.executable, "-c", code]
    subprocess.run(command, check=True, env=environment, timeout=120)

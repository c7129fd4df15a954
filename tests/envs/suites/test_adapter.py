"""Names, missing packages and failures of every suite: one line each, before anything is built."""

import subprocess
import sys

import pytest

import jaxdqn
from jaxdqn.cli import run as run_command
from jaxdqn.config.config import Config
from jaxdqn.config.suite_envs import DEVICE_SUITES, OWN_SUITE, is_suite_env
from jaxdqn.envs import configured_environment
from jaxdqn.envs.suites.adapter import Source, build, import_suite, require_id


def line_of(call):
    with pytest.raises(ValueError, match=r"^env") as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_unknown_suite_lists_the_suites():
    message = line_of(lambda: jaxdqn.make_env("navx:Navix-Empty-8x8-v0"))
    assert message == (
        "env='navx:Navix-Empty-8x8-v0': must be SUITE:ID, with SUITE a known suite; nearest: navix"
    )
    message = line_of(lambda: configured_environment(Config(env="brax:ant")))
    assert all(suite in message for suite in (OWN_SUITE, *DEVICE_SUITES, "gymnasium"))


def test_names_of_suites_on_the_device_are_told_from_others():
    names = ["navix:A", "pgx:2048", "pixels:A", "gymnasium:CartPole-v1", "CartPole-v1", "navix"]
    assert [is_suite_env(name) for name in names] == [True, True, True, False, False, False]


@pytest.mark.parametrize("suite", DEVICE_SUITES)
def test_a_suite_that_is_not_installed_names_its_extra(suite, monkeypatch):
    for package in (suite, "craftax.craftax_env", "octax.environments"):
        monkeypatch.setitem(sys.modules, package, None)
    ident = "Craftax-Symbolic-v1" if suite == "craftax" else "anything"
    message = line_of(lambda: jaxdqn.make_env(f"{suite}:{ident}"))
    assert message.startswith(f"env='{suite}:{ident}': must be of an installed suite; install it ")
    assert f'pip install "jaxdqn[{suite}]" (' in message


def test_the_command_reports_a_suite_that_is_not_installed_in_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pgx", None)
    assert run_command.main(["dqn", "--env", "pgx:2048"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: env='pgx:2048': must be of an installed suite")


def test_a_package_that_a_suite_needs_and_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "wave", None)
    message = line_of(lambda: import_suite("octax:brix", "chunk_reader", "wave"))
    assert "No module named 'chunk_reader'" in message


def test_an_unknown_id_lists_the_nearest():
    require_id("navix:one", ["one", "two"])
    message = line_of(lambda: require_id("navix:onne", ["one", "two"]))
    assert message.endswith("must be navix:ID, with ID a known environment; nearest: one")


def test_an_exception_of_a_suite_is_one_line_with_the_arguments():
    def make() -> Source:
        raise RuntimeError("first\nline\n\nand a long explanation")

    message = line_of(lambda: build("pgx:2048", make, {"size": 3}))
    assert message == (
        "env='pgx:2048': must be one that its suite can make with valid arguments, "
        "not ['size=3']: RuntimeError: first line"
    )
    assert "with its default arguments: RuntimeError" in line_of(lambda: build("a:b", make, {}))


def test_data_that_cannot_be_loaded_is_one_line():
    def make() -> Source:
        raise FileNotFoundError("no network")

    message = line_of(lambda: build("jumanji:Sokoban-v0", make, {}))
    assert message == "env='jumanji:Sokoban-v0': its data could not be loaded: no network"


def test_the_full_action_set_is_that_of_gymnax_games():
    config = Config(env="pgx:minatar-breakout", full_action_set=True)
    with pytest.raises(ValueError, match="full_action_set=True: must be False with env='pgx:"):
        configured_environment(config)


def test_no_suite_is_imported_before_it_is_used():
    program = (
        "import sys, jaxdqn\n"
        "jaxdqn.make_env('CartPole-v1')\n"
        f"assert not set({DEVICE_SUITES}) & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)

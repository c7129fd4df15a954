"""Declarations of options: everything else about an option follows from its declaration."""

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import jax
import pytest

from jaxdqn.cli.help import field_docs
from jaxdqn.config.config import Config
from jaxdqn.config.option import Rule, option, rules
from jaxdqn.config.options import PARALLEL_OPTIONS, REPLICA_OPTIONS, SWEEPABLE, Options
from jaxdqn.training.hyper import hyper_from
from jaxdqn.types import Hyper

PACKAGE = Path(__file__).resolve().parents[2] / "jaxdqn"


def test_every_option_is_declared_with_a_rule_and_a_help():
    docs = field_docs(Options)
    for field in dataclasses.fields(Options):
        assert "rule" in field.metadata, field.name
        assert docs[field.name], field.name


def test_every_default_satisfies_its_rule():
    for name, rule in rules(Options).items():
        value = getattr(Options, name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            assert rule.violated(value) is None, name


def test_every_enabling_choice_is_an_option_and_one_of_its_values():
    kinds = get_type_hints(Options)
    for name, rule in rules(Options).items():
        for choice, values in {**rule.only_with, **rule.swept_with}.items():
            known = rules(Options)[choice].choices or get_args(kinds[choice]) or (False, True)
            assert set(values) <= set(known), name


@pytest.mark.parametrize(
    ("rule", "value", "constraint"),
    [
        (Rule(), -1e9, None),
        (Rule(between=(0, 1)), 1.5, "between 0 and 1"),
        (Rule(between=(0, 1)), 1, None),
        (Rule(at_least=1), 0, "at least 1"),
        (Rule(at_least=1), 1, None),
        (Rule(at_least=1, below=8), 8, "below 8"),
        (Rule(at_least=1, below=8), 0, "at least 1"),
        (Rule(above=0), 0, "above 0"),
        (Rule(above=0), 1e-9, None),
        (Rule(above=0, at_most=1), 2, "above 0 and at most 1"),
        (Rule(above=0, at_most=1), 1, None),
        (Rule(above=0, below=1), 1, "above 0 and below 1"),
        (Rule(at_most=0), 0.5, "at most 0"),
    ],
)
def test_a_rule_names_the_constraint_that_a_value_violates(rule, value, constraint):
    assert rule.violated(value) == constraint


def test_a_declaration_keeps_its_default_and_rule():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class More(Options):
        novelty: float = option(0.5, group="Exploration", between=(0, 1), sweepable=True)
        plain: int = 3

    assert (More().novelty, More().plain) == (0.5, 3)
    assert rules(More)["novelty"] == Rule(group="Exploration", between=(0, 1), sweepable=True)
    assert rules(More)["plain"] == Rule()
    assert list(rules(More))[: len(rules(Options))] == list(rules(Options))


def test_options_are_not_validated_and_a_configuration_is():
    assert Options(gamma=2).gamma == 2
    with pytest.raises(ValueError, match=r"^gamma=2: must be between 0 and 1$"):
        Config(gamma=2)


def test_options_of_replicas_are_options_of_parallel_runs():
    assert set(REPLICA_OPTIONS) < set(PARALLEL_OPTIONS)


def test_the_hyper_parameters_are_the_sweepable_options():
    assert Hyper._fields == (*SWEEPABLE, "extra")
    hyper = hyper_from(Config(gamma=0.5, clip_norm=None))
    assert float(hyper.gamma) == 0.5
    # A value that is not set is finite: infinity would stop a run under jax_debug_infs.
    assert float(hyper.clip_norm) == pytest.approx(3.4e38)
    assert all(leaf.dtype == "float32" and leaf.shape == () for leaf in jax.tree.leaves(hyper))
    assert hyper.extra == {}


def test_a_sweepable_option_needs_no_other_edit_than_its_declaration(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "jaxdqn", ignore=shutil.ignore_patterns("__pycache__"))
    file = tmp_path / "jaxdqn" / "config" / "options.py"
    text, mark = file.read_text(), "    gamma: float = option("
    assert text.count(mark) == 1
    declaration = (
        '    novelty: float = option(0.5, group="Exploration", between=(0, 1), sweepable=True, '
        'only_with={"replay": "prioritized"})\n    """Weight of novelty."""\n'
    )
    file.write_text(text.replace(mark, declaration + mark))
    code = """
from jaxdqn import Config, hyper_from
from jaxdqn.cli.run import main
from jaxdqn.parallel.learners import learner_hypers
swept = Config(replay="prioritized", sweep=("novelty=0.25,0.75",))
print(float(hyper_from(Config()).novelty), learner_hypers(swept).novelty.tolist())
for fields in ({"novelty": 2}, {"novelty": 0.1}, {"sweep": ("novelty=0.25,0.75",)}):
    try:
        Config(**fields)
    except ValueError as error:
        print(error)
try:
    main(["--help-all"])
except SystemExit:
    pass
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "COLUMNS": "100", "PATH": ""},
    )
    first, second, third, fourth, *help_all = result.stdout.splitlines()
    assert first == "0.5 [0.25, 0.75]"
    assert second == "novelty=2: must be between 0 and 1"
    assert third == "novelty=0.1: must be 0.5 unless replay='prioritized'"
    assert fourth.startswith("sweep='novelty=0.25,0.75': must be of an option in use: novelty")
    (line,) = [line for line in help_all if "--novelty" in line]
    assert "Weight of novelty." in line

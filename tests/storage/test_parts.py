"""References to custom parts, and their record in a run directory."""

import json
import sys

import pytest
from flax import linen

from jaxdqn.config.config import Config, to_dict
from jaxdqn.storage.parts import check_reference, read_parts, resolve, resolve_parts, write_parts
from jaxdqn.types import Environment
from tests.own_parts import SOURCE


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module of custom parts into the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    before = set(sys.modules)
    (tmp_path / "mine.py").write_text(SOURCE)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("mine"):
            del sys.modules[name]


@pytest.mark.parametrize("target", ["mine", "mine.py"])
def test_a_reference_names_a_function_that_returns_the_part(module, target):
    environment = resolve("environment", f"{target}:corridor")
    assert isinstance(environment, Environment)
    assert environment.spec.name == "corridor"
    assert isinstance(resolve("network", f"{target}:Linear"), linen.Module)
    assert callable(resolve("optimizer", f"{target}:sgd"))
    assert resolve("environment", f"{target}:Nested.corridor").spec.name == "corridor"


def test_a_file_may_have_any_path_and_import_its_neighbours(module):
    folder = module / "deep er"
    folder.mkdir()
    (folder / "mine_neighbour.py").write_text("from mine import corridor\n")
    (folder / "json.py").write_text("from mine_neighbour import corridor\n")
    import json as library

    resolve("environment", "mine:corridor")  # makes the current directory importable
    assert resolve("environment", "deep er/json.py:corridor").spec.name == "corridor"
    assert resolve("environment", f"{folder}/json.py:corridor").spec.name == "corridor"
    assert sys.modules["json"] is library


def test_two_parts_of_one_file_share_the_module(module):
    (module / "mine_once.py").write_text(
        SOURCE
        + "\nfrom pathlib import Path\nwith Path('count').open('a') as f:\n    f.write('.')\n"
    )
    resolve("environment", "mine_once.py:corridor")
    resolve("network", "mine_once.py:Linear")
    assert (module / "count").read_text() == "."


BAD = {
    "no colon": ("environment", "mine", "must be MODULE:FUNCTION or FILE.py:FUNCTION; --env"),
    "no function": ("network", "mine:", "must be MODULE:FUNCTION or FILE.py:FUNCTION"),
    "no module": ("network", ":Linear", "must be MODULE:FUNCTION"),
    "missing module": ("environment", "min:corridor", "must name a module; min is neither in /"),
    "missing submodule": ("network", "mine.sub:f", "must name a module; mine.sub is neither in /"),
    "missing file": ("environment", "min.py:corridor", "must name a file; there is no /"),
    "missing function": ("environment", "mine:corrido", "must name a function of mine; it has no"),
    "constant": ("environment", "mine:CONSTANT", "must name a function that returns a jaxdqn "),
    "module object": ("network", "mine:MODULE", "must name a function that returns a flax module"),
    "arguments": ("optimizer", "mine:needs_argument", "must name a function without arguments"),
    "wrong type": ("environment", "mine:Linear", "must return a jaxdqn Environment, .* not Linear"),
    "nothing": ("network", "mine:nothing", "must return a flax module .* not NoneType"),
    "transformation": ("optimizer", "mine:transformation", "must return an optimizer, a function"),
    "no optimizer": ("optimizer", "mine:Linear", "must return an optimizer, .* not Linear"),
    "broken import": ("environment", "mine_broken:f", "must be importable; importing mine_broken"),
    "broken file": ("environment", "mine_broken.py:f", "must be importable; .* 'no_such_module'"),
}


@pytest.mark.parametrize(("name", "reference", "message"), BAD.values(), ids=BAD)
def test_a_bad_reference_is_one_line_that_names_it(module, name, reference, message):
    (module / "mine_broken.py").write_text("import no_such_module\n")
    with pytest.raises(ValueError, match=f"^{name}='{reference}': {message}") as raised:
        resolve(name, reference)
    assert "\n" not in str(raised.value)


def test_the_form_is_checked_without_importing(module):
    check_reference("environment", "no.such.module:function")
    check_reference("environment", "no/such/file.py:function")
    with pytest.raises(ValueError, match="must be MODULE:FUNCTION"):
        check_reference("environment", "no such module:function")


def test_errors_in_the_users_code_are_raised_as_they_are(module):
    (module / "mine_fails.py").write_text("def f():\n    raise KeyError('mine')\n")
    with pytest.raises(KeyError, match="mine"):
        resolve("environment", "mine_fails:f")


def test_references_are_recorded_with_their_directory_and_objects_as_null(module):
    environment = resolve("environment", "mine:corridor")
    given = {"environment": environment, "network": "mine:Linear", "optimizer": None}
    parts = resolve_parts(given)
    assert parts.objects["environment"] is environment
    assert isinstance(parts.objects["network"], linen.Module)
    assert parts.objects["optimizer"] is None
    assert parts.record == {
        "environment": None,
        "network": {"reference": "mine:Linear", "directory": str(module)},
    }


def run_directory(path, record, **fields):
    path.mkdir()
    (path / "config.json").write_text(json.dumps(to_dict(Config(**fields))))
    write_parts(path, record)
    return path


def test_a_record_completes_the_parts_from_any_directory(module, tmp_path, monkeypatch):
    run = run_directory(tmp_path / "run", resolve_parts({"environment": "mine:corridor"}).record)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    record = read_parts(run)
    parts = resolve_parts({"environment": None, "network": None}, record, run=run)
    assert parts.objects["environment"].spec.name == "corridor"
    assert parts.objects["network"] is None
    assert parts.record == record


def test_a_given_part_replaces_the_remembered_one(module):
    record = resolve_parts({"network": "mine:nothing_at_all"} | {"network": None}).record
    assert record == {}
    record = {"network": {"reference": "mine:gone", "directory": str(module)}}
    assert isinstance(
        resolve_parts({"network": "mine:Linear"}, record).objects["network"], linen.Module
    )


def test_a_directory_that_is_gone_is_replaced_by_the_current_one(module):
    record = {"network": {"reference": "mine.py:Linear", "directory": "/no/such/directory"}}
    assert isinstance(resolve_parts({"network": None}, record).objects["network"], linen.Module)


def test_a_part_that_was_an_object_must_be_passed_again(tmp_path):
    run = run_directory(tmp_path / "run", {"network": None})
    with pytest.raises(ValueError, match=r"network=None: must be given: .* --network MODULE:FUNC"):
        resolve_parts({"network": None}, read_parts(run), run=run)
    # The record does not contain parts that are not requested.
    assert resolve_parts({"environment": None}, read_parts(run), run=run).objects == {
        "environment": None
    }


def test_a_run_without_a_record_whose_environment_is_unknown_had_its_own(tmp_path):
    assert read_parts(run_directory(tmp_path / "own", {}, env="corridor")) == {"environment": None}
    assert read_parts(run_directory(tmp_path / "registered", {})) == {}
    assert not (tmp_path / "registered" / "parts.json").exists()


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"env": null}', '{"network": "a:b"}', '{"network": {"reference": "a:b"}}']
)
def test_a_damaged_record_is_rejected(tmp_path, text):
    run = run_directory(tmp_path / "run", {})
    (run / "parts.json").write_text(text)
    with pytest.raises(ValueError, match=r"parts\.json: must be a"):
        read_parts(run)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("explore", "mine:greedy"),
        ("explore", "mine:greedy_by_factory"),
        ("replay", "mine:replay"),
        ("loss", "mine:reward_loss"),
        ("learning", "mine:learning"),
        ("agent", "mine:agent"),
    ],
)
def test_a_reference_of_a_function_may_name_the_part_itself(module, name, reference):
    part = resolve(name, reference)
    assert part.__name__ == reference.partition(":")[2].removesuffix("_by_factory")


@pytest.mark.parametrize(
    ("name", "reference", "message"),
    [
        ("explore", "mine:replay", "must name a function without arguments that returns an explor"),
        ("replay", "mine:nothing", "must return a replay, a function config -> Replay, not None"),
        ("agent", "mine:Linear", "must return an Agent, or a function .* not Linear"),
    ],
)
def test_a_reference_of_another_part_is_rejected(module, name, reference, message):
    with pytest.raises(ValueError, match=f"^{name}='{reference}': {message}"):
        resolve(name, reference)

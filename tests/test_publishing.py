"""The files that a repository and its releases need: version, citation, workflow, templates."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import jaxdqn

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def read_yaml(path):
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def test_the_version_stands_in_one_place_and_the_citation_has_it():
    assert "version" in PROJECT["dynamic"]
    citation = read_yaml("CITATION.cff")
    assert citation["version"] == jaxdqn.__version__
    assert citation["license"] == PROJECT["license"]
    assert [author["name"] for author in citation["authors"]] == [
        author["name"] for author in PROJECT["authors"]
    ]


def test_the_workflow_runs_the_checks_on_every_supported_python():
    workflow = read_yaml(".github/workflows/ci.yml")
    assert set(workflow[True]) >= {"push", "pull_request"}  # YAML reads the key `on` as True
    job = workflow["jobs"]["test"]
    declared = {
        found[1]
        for text in PROJECT["classifiers"]
        if (found := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", text))
    }
    assert set(job["strategy"]["matrix"]["python"]) == declared
    assert {"run": "bash .ci/run"} in job["steps"]
    assert (ROOT / ".ci/run").is_file()


def test_the_workflow_builds_the_documentation_that_make_builds():
    steps = read_yaml(".github/workflows/ci.yml")["jobs"]["docs"]["steps"]
    assert {"run": "make docs"} in steps
    folder = next(step["with"]["path"] for step in steps if "upload" in step.get("uses", ""))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^DOCS := {folder}$", makefile, re.MULTILINE)


@pytest.mark.parametrize("name", ["bug", "performance", "feature"])
def test_an_issue_template_asks_for_something(name):
    template = read_yaml(f".github/ISSUE_TEMPLATE/{name}.yml")
    assert template["name"]
    assert template["description"]
    for field in template["body"]:
        assert field["type"] == "textarea"
        assert field["attributes"]["label"]
    identifiers = [field["id"] for field in template["body"]]
    assert len(identifiers) == len(set(identifiers))
    assert any(field.get("validations", {}).get("required") for field in template["body"])

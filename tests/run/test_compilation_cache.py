"""The persistent compilation cache of runs: the library's by default, the user's if one is set."""

from pathlib import Path

import jax
import pytest

from jaxdqn.run import compilation_cache
from jaxdqn.run.compilation_cache import programs_kept, use_persistent_cache

SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_enable_compilation_cache",
)

default_directory = compilation_cache.default_directory
"""The function of the library, before a fixture of the tests replaces it."""


@pytest.fixture
def settings():
    """Set JAX's settings of the cache as a new process has them, and restore them."""
    before = {name: getattr(jax.config, name) for name in SETTINGS}

    def read():
        return tuple(getattr(jax.config, name) for name in SETTINGS)

    for name, value in zip(SETTINGS, (None, 1.0, True), strict=True):
        jax.config.update(name, value)
    yield read
    for name, value in before.items():
        jax.config.update(name, value)


def test_programs_are_kept_in_the_directory_of_the_library(settings):
    directory = str(compilation_cache.default_directory())
    with programs_kept():
        assert settings() == (directory, 0.0, True)
    assert settings() == (directory, 1.0, True)
    # A directory that an earlier run has set is not taken for the user's.
    with programs_kept():
        assert settings() == (directory, 0.0, True)


@pytest.mark.parametrize("chosen", ["/somewhere/else", ""], ids=["a directory", "none"])
def test_a_directory_of_the_user_stays(settings, chosen):
    jax.config.update("jax_compilation_cache_dir", chosen)
    with programs_kept():
        assert settings() == (chosen, 1.0, True)


def test_a_cache_that_is_switched_off_stays_off(settings):
    jax.config.update("jax_enable_compilation_cache", False)
    assert not use_persistent_cache()
    assert settings() == (None, 1.0, False)


def test_without_a_directory_to_write_to_there_is_no_cache(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(compilation_cache, "default_directory", default_directory)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert not use_persistent_cache()
    monkeypatch.delenv("XDG_CACHE_HOME")

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert not use_persistent_cache()
    assert settings() == (None, 1.0, True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_directory() == tmp_path / "jaxdqn" / "xla"

"""Tests of jaxdqn. A package, since a module named tests of another project may be installed."""

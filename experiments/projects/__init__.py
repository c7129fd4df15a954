"""Worked projects, each from nothing to a video; ``docs/projects/`` has a page of each."""

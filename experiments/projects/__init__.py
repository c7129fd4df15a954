"""Worked projects from the first command to a video; ``docs/projects/`` has a page for each."""

"""Measurements against the tools that people use today; each module is a command."""

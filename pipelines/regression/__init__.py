"""Regression tests: a student or a way of adapting one against a baseline on a pinned suite, for people and CI jobs."""

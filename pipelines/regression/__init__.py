"""Regression tests of students: a candidate against a baseline on a pinned suite, for people and for CI jobs."""

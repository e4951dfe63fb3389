"""Measurements for the documents, each run with `python -m pipelines.experiments.NAME`; no part of any result."""

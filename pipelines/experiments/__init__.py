"""Measurements for the documentation (`python -m pipelines.experiments.NAME`), and the builds of the micro models."""

"""The runs behind `docs/evidence.md`, and the document itself: `python -m pipelines.evidence PLAN`."""

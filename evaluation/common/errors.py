"""Errors, one class per boundary.

Keep a single string argument, since errors are pickled; messages say what failed, where, got, allowed, next step.
"""

from __future__ import annotations


class PreceptorError(Exception):
    """Base of all intended errors, shown to the user without a traceback."""


class ConfigError(PreceptorError, ValueError):
    """Invalid configuration; the message lists every mistake."""


class InputError(PreceptorError, ValueError):
    """Invalid documents or questions; the message lists every bad row with file, line and reason."""


class ModelError(PreceptorError, RuntimeError):
    """A checkpoint cannot be opened or does not fit its role."""


class GenerationError(PreceptorError, RuntimeError):
    """An engine could not sample from a language model."""


class EndpointError(PreceptorError, RuntimeError):
    """Permanent failure of an endpoint; earlier replies are stored."""


class BudgetError(PreceptorError, RuntimeError):
    """The next call could exceed the budget; earlier replies are stored."""


class UpdateError(PreceptorError, RuntimeError):
    """A batch of updates failed; failures of a single slot are records instead."""


class ScoringError(PreceptorError, RuntimeError):
    """Answers could not be scored."""


class ServeError(PreceptorError, RuntimeError):
    """A champion could not be fetched, loaded, verified or served."""


class LineageError(PreceptorError, RuntimeError):
    """The tracking store or model registry failed or lost data."""

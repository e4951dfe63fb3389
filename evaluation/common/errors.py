"""Errors, one class for each boundary that work crosses.

Each inherits the built-in error it stands for. To add one, keep a single string argument (errors cross process
boundaries and must pickle), and write messages that say what failed, where, what was got, what is allowed, what next.
"""

from __future__ import annotations


class PreceptorError(Exception):
    """Base of all errors that Preceptor raises on purpose; its text is meant for the user, without a traceback."""


class ConfigError(PreceptorError, ValueError):
    """A configuration was refused; the message lists every mistake in it."""


class InputError(PreceptorError, ValueError):
    """Documents or questions were refused; the message lists every bad row with file, line and reason."""


class ModelError(PreceptorError, RuntimeError):
    """A checkpoint could not be opened or does not fit its role."""


class GenerationError(PreceptorError, RuntimeError):
    """An engine could not sample from a language model."""


class EndpointError(PreceptorError, RuntimeError):
    """An endpoint refused in a way that no retry mends; what was answered before is stored."""


class BudgetError(PreceptorError, RuntimeError):
    """The next call to an endpoint could exceed the budget; what was answered before is stored."""


class UpdateError(PreceptorError, RuntimeError):
    """A student could not be updated as a whole batch; failures of one slot are records, not exceptions."""


class ScoringError(PreceptorError, RuntimeError):
    """Answers could not be scored."""


class ServeError(PreceptorError, RuntimeError):
    """A champion could not be fetched, loaded, proved or kept running."""


class LineageError(PreceptorError, RuntimeError):
    """The tracking store or the model registry refused or lost something."""


class BuildError(PreceptorError, RuntimeError):
    """A rebuilt micro model failed one of the checks that it must pass."""

"""The root of riskstream's exceptions.

The tree says what the caller does next; leaf classes live beside the package that raises them::

    RiskstreamError
     + RetryableError        a dependency is slow or away: wait, with back-pressure, and try again
     + RecordError           one record is bad: it becomes a dead letter, its neighbours go on
     + FatalError            nothing can go on: fail the job or the command
        + ConfigurationError   a setting, declaration or file is wrong

Message pattern: what was being done, the offending value with ``!r``, the expected form, the
next step.
"""

__all__ = [
    "ConfigurationError",
    "FatalError",
    "RecordError",
    "RetryableError",
    "RiskstreamError",
]


class RiskstreamError(Exception):
    """Base of everything that riskstream raises on purpose."""


class RetryableError(RiskstreamError):
    """A dependency did not answer; the same call may succeed later."""


class RecordError(RiskstreamError):
    """One record cannot be used; it belongs in the dead-letter topic."""


class FatalError(RiskstreamError):
    """The work cannot go on without a person."""


class ConfigurationError(FatalError):
    """A setting, declaration or file is wrong; the message lists every mistake found."""

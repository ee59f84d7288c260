"""What can go wrong in the windows.

The tree::

    ConfigurationError
     + FeatureDeclarationError   the declaration of a feature set is wrong; every mistake is listed
    FatalError
     + StateFormatError          stored window state cannot be read by this version
    FatalError
     + FeatureInputError         a file or a query does not hold what the features need
"""

from __future__ import annotations

from schemas.errors import ConfigurationError, FatalError

__all__ = ["FeatureDeclarationError", "FeatureInputError", "StateFormatError"]


class FeatureDeclarationError(ConfigurationError):
    """The declaration of a feature set is wrong; the message lists every mistake found."""


class StateFormatError(FatalError):
    """Stored window state is damaged or was written by a newer version."""


class FeatureInputError(FatalError):
    """A file or a table does not hold what the features are computed from."""

"""Errors that a person can act on.

Each names the value that is wrong and the cure, and carries the exit code of the command line (DESIGN.md section 1):
2 usage or config, 3 data, 4 environment, 5 storage or network, 6 out of resources, 7 quality gate not met, 8 head of
the cluster lost, 9 node lost, 75 told to end before the work was done (run the same command again).
"""

from typing import ClassVar


class RetortError(Exception):
    """A mistake or a fault that the user can mend; the command line prints it without a traceback."""

    exit_code: ClassVar[int] = 1


class ConfigError(RetortError):
    """A run file or an option is wrong."""

    exit_code = 2


class DataError(RetortError):
    """The input data are missing, broken, or do not belong together."""

    exit_code = 3


class MissingRequirementError(RetortError):
    """Something that the machine should have is missing."""

    exit_code = 4


class StorageError(RetortError):
    """A store could not be read or written, or what it holds is damaged."""

    exit_code = 5


class ResourceError(RetortError):
    """The machine or the cluster ran out of something."""

    exit_code = 6


class QualityGateError(RetortError):
    """A result is below the stated gate."""

    exit_code = 7


class HeadLostError(RetortError):
    """The head of the cluster does not answer any more; what was committed is intact."""

    exit_code = 8


class NodeLostError(RetortError):
    """A node of the cluster went away, and the work cannot go on without it."""

    exit_code = 9


class PreemptedError(RetortError):
    """The job was told to end before its work was done; the next start goes on where it stopped."""

    exit_code = 75

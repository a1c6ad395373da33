"""Errors of the export stage: each names the file or the operators at fault."""

from __future__ import annotations

import errno

from ovseg.errors import ModelError, OvsError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Numbers of an `OSError` by which a disk takes no more; `export.export_model` says which disk."""


class ProgramError(ModelError):
    """A Paddle program file that cannot be read."""


class ParameterError(ModelError):
    """A Paddle parameter file that is missing, cut short, or does not fit its program."""


class UnsupportedOperators(ModelError):  # noqa: N818 - it is a list of them
    """A Paddle program with operators, or uses of operators, that have no lowering."""


class PaddleFailure(OvsError):  # noqa: N818
    """Paddle failed or crashed in the process that runs it."""

    exit_code = 1


class ParityError(OvsError):
    """The ONNX model does not compute what the Paddle model computes."""

    exit_code = 1


class UnsupportedCase(Exception):  # noqa: N818 - it is caught and listed, never shown alone
    """Raised by a lowering function for a use of its operator that it cannot express in ONNX."""

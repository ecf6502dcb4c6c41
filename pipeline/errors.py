"""What bad input looks like to the command line."""

import errno

from data_prep.errors import DataError, WorkFailed
from eval.errors import EvaluationError
from foundation.errors import DiskError
from model_surgery.errors import SurgeryError
from slurm.errors import SlurmError, SlurmUnreachable


class RecipeError(ValueError):
    """A recipe, an override or a run folder that cannot be used: one line with the way out."""


class StageFailed(RuntimeError):
    """A stage ended with an error that is not bad input; the message says where to look."""


class Stopped(RuntimeError):
    """A signal asked for an end, and what was done is safe: the same command goes on from it."""


class OutOfTime(Stopped):
    """The end was asked for because the time limit comes near: in as much time as this the work gets as far again."""


BAD_INPUT = (RecipeError, DataError, SurgeryError, EvaluationError, SlurmError, DiskError)
REQUEUE = 75
_UNUSABLE_PATH = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST),
    *(errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP),
)


def exit_code(error: Exception) -> int | None:
    """2 for bad input, also a path that cannot be used; 75 for a stop that may be gone on from (EX_TEMPFAIL of
    sysexits.h: a job script requeues on it); 1 for a failure that one line explains; None for all others.

    Others deserve their traceback. A connection that breaks is a failure: the next attempt goes on.
    """
    if isinstance(error, BAD_INPUT) or (isinstance(error, OSError) and error.errno in _UNUSABLE_PATH):
        return 2
    if isinstance(error, Stopped):
        return REQUEUE
    return 1 if isinstance(error, (StageFailed, WorkFailed, SlurmUnreachable, ConnectionError)) else None

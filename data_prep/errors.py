"""The error that every bad input of data preparation ends as."""


class DataError(ValueError):
    """Bad input: one line that names the thing, its value and the way out."""


class WorkFailed(RuntimeError):
    """Work that ended through no fault of the input; what is complete stays, and a next attempt goes on from it."""

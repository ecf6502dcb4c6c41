"""The error that every bad input of data preparation ends as."""


class DataError(ValueError):
    """Bad input: one line that names the thing, its value and the way out."""

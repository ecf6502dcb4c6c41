"""The error that every refusal of this package ends as, and the way out of a full disk."""

RUN_AGAIN = "free some space and run again, finished units are kept"
"""What to do where the disk is full: given to whatever writes below an evaluation's folder."""


class EvaluationError(ValueError):
    """Input that cannot be evaluated: one line that names the thing, the value and the way out."""

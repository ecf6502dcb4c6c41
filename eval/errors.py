"""The error that every refusal of this package ends as."""


class EvaluationError(ValueError):
    """Input that cannot be evaluated: one line that names the thing, the value and the way out."""

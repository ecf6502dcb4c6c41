"""What bad input looks like to the command line."""

from data_prep.errors import DataError
from eval.errors import EvaluationError
from model_surgery.errors import SurgeryError


class RecipeError(ValueError):
    """A recipe, an override or a run folder that cannot be used: one line with the way out."""


class StageFailed(RuntimeError):
    """A stage ended with an error that is not bad input; the message says where to look."""


BAD_INPUT = (RecipeError, DataError, SurgeryError, EvaluationError)

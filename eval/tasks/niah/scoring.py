"""RULER's score: the share of the right values that the answer holds, upper and lower case alike.

This file is put beside samples, where lm-eval reads it; it imports nothing of this package.
"""

from collections.abc import Sequence


def string_match(answer: str, values: Sequence[str]) -> float:
    """Recall over all needles (RULER's string_match_all). More text never lowers it."""
    lower = answer.lower()
    return sum(value.lower() in lower for value in values) / len(values)


def process_results(doc: dict, results: list[str]) -> dict[str, float]:
    """For lm-eval: the score of one sample's answer."""
    return {"string_match": string_match(results[0], doc["outputs"])}

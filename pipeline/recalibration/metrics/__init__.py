"""Step metrics: a line of numbers for every step, what happened between steps, and what every validation found."""

from pipeline.recalibration.metrics.files import (
    EVENTS_FILE,
    MEASURED,
    METRICS_FILE,
    VALIDATION_FILE,
    Value,
    read_events,
    read_metrics,
    read_validation,
)
from pipeline.recalibration.metrics.recorder import clock

__all__ = [
    "EVENTS_FILE",
    "MEASURED",
    "METRICS_FILE",
    "VALIDATION_FILE",
    "Value",
    "clock",
    "read_events",
    "read_metrics",
    "read_validation",
]

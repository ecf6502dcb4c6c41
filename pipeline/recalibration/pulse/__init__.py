"""Noticing ranks that stop answering: every rank publishes where it is, and one that stands still is named."""

from pipeline.recalibration.pulse.fault import Fault
from pipeline.recalibration.pulse.pulse import Pulse

__all__ = ["Fault", "Pulse"]

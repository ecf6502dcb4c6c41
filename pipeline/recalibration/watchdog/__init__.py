"""Noticing ranks that stop answering: every rank publishes heartbeats, and one that stands still is named."""

from pipeline.recalibration.watchdog.fault import Fault
from pipeline.recalibration.watchdog.watchdog import Watchdog

__all__ = ["Fault", "Watchdog"]

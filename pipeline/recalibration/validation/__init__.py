"""Held-out loss and recall in the run."""

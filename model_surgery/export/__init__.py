"""A layout becomes a Hugging Face folder (docs/export.md)."""

from model_surgery.export.folder import run

__all__ = ["run"]

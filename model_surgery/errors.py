"""What this package raises when its input is at fault."""


class SurgeryError(ValueError):
    """Bad input: one line that names the thing, the value and the way out."""

"""Bad input that no package owns."""


class DiskError(ValueError):
    """A file that cannot be written: the disk is full, or the folder does not take it. One line with the way out."""

"""Needles in a haystack as in RULER: samples, their files, their scores."""

"""The folder of a run: manifests, locks, running the stages in it."""

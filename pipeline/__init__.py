"""The recipe, the stages in order, the `drope` command, recalibration and the report."""

"""Which model variants are scored on which tasks at which lengths, and the scores."""

"""Documents -> token ids -> memory-mapped shards -> training rows."""

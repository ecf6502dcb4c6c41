"""Files, data sets of the Hub and what is in them -> documents, in pieces, with what could not be read."""

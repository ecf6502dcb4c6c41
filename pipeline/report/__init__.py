"""The page of a run: plots, tables, the checks that it passed and where every number came from."""

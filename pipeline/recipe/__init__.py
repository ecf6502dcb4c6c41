"""The recipe: a YAML file as settings, and the model that it names."""

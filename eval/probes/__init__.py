"""The paper's theory, measured on a model."""

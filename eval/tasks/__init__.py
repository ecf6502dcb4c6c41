"""What the models are scored on."""

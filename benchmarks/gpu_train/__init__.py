"""Training speed on one GPU, beside the published code's way."""

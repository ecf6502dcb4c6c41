"""`drope status` and `drope logs`: what has become of a run."""

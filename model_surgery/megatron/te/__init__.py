"""NVIDIA's Transformer Engine (https://docs.nvidia.com/deeplearning/transformer-engine/): all that the project knows
of it. Fused layers, and FP8, on GPUs; torch's layers stand in their place where it is not.

`availability` asks whether it is there; the other modules may only be imported where it is.
"""

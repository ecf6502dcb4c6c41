from transformer_engine.pytorch.quantization import FP8GlobalStateManager, autocast

fp8_autocast = autocast
__all__ = ["FP8GlobalStateManager", "fp8_autocast"]

class CudaRNGStatesTracker:
    """Not used."""


def checkpoint(*arguments: object) -> None:
    raise NotImplementedError


def activation_recompute_forward(*arguments: object) -> None:
    raise NotImplementedError


def is_fp8_activation_recompute_enabled() -> bool:
    return False

"""Whether Transformer Engine works here; where it does not, Megatron-core is kept from it."""

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version

_NAME = "transformer_engine"


@dataclass(frozen=True)
class TransformerEngine:
    """Transformer Engine as it was found in this process."""

    version: str | None
    """None: it cannot be used."""
    problem: str = ""
    """Why it cannot be used; empty if it can."""
    is_installed: bool = True


def is_installed() -> bool:
    """Whether the package is there, working or not; costs no import."""
    return importlib.util.find_spec(_NAME) is not None


@cache
def find() -> TransformerEngine:
    """Imports it, where there is a GPU; hides it from Megatron-core if it is installed and cannot be used.

    Megatron-core imports whatever is installed and expects an ImportError at worst, but without cuDNN or a GPU the
    package raises others (RuntimeError, OSError).
    """
    if not is_installed():
        return TransformerEngine(None, "not installed (extra: gpu)", is_installed=False)
    import torch

    installed = version("transformer-engine")
    try:
        if not torch.cuda.is_available():
            raise RuntimeError("there is no GPU")
        importlib.import_module(f"{_NAME}.pytorch")
    except Exception as error:  # whatever its many libraries raise
        hide()
        return TransformerEngine(None, f"{installed} does not load: {' '.join(str(error).split())[:160]}")
    return TransformerEngine(installed)


def cudnn_version() -> tuple[int, int, int]:
    """Of the cuDNN that Transformer Engine computes attention with; only where `find` has found it."""
    from transformer_engine.pytorch.utils import get_cudnn_version

    return get_cudnn_version()


def hide() -> None:
    """From now on `import transformer_engine` raises ImportError in this process, as if it were not installed."""
    for name in [name for name in sys.modules if name.startswith(f"{_NAME}.")]:
        del sys.modules[name]
    sys.modules[_NAME] = None  # type: ignore[assignment]

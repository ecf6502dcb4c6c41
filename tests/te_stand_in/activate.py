"""Makes a process on the CPU believe that Transformer Engine works: call before Megatron-core is imported."""

import importlib
import os
import sys
from pathlib import Path


def activate() -> None:
    importlib.import_module("model_surgery.megatron")  # decides that there is none

    assert not any(name.startswith("megatron.core") for name in sys.modules)
    sys.modules.pop("transformer_engine", None)
    sys.path.insert(0, str(Path(__file__).parent))
    importlib.import_module("transformer_engine")
    importlib.import_module("transformer_engine")
    from pipeline.recalibration import layer_agreement
    from pipeline.recalibration.layer_choice import Device

    # A name of its own, so that nobody takes what was computed for a GPU's.
    capability = (int(os.environ.get("DROPE_TEST_CAPABILITY", "9")), 0)
    device = Device("a CPU that stands in for Hopper", capability, "2.20.2", cudnn=(9, 20, 0))
    layer_agreement.this_device = lambda: device

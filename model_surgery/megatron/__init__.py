"""The layout as a running Megatron-core model; used to verify a layout and to train it."""

import logging
import warnings

from model_surgery.megatron.te import availability

# Megatron-core tells every process at import what of NVIDIA's stack it does not find; `drope doctor` tells it once.
logging.getLogger("megatron.core").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module=r"megatron\..*")
warnings.filterwarnings("ignore", message=r".*all_gather_into_tensor.*", category=FutureWarning)

if availability.is_installed():  # before Megatron-core finds one that does not load
    availability.find()

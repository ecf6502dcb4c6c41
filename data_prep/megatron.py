"""Megatron-core's data set classes, imported without its chatter."""

import logging
import sys
import warnings

# Megatron-core imports Transformer Engine where it is installed, and fails with it where it does not load. Data sets
# need none; a process that does has imported it before.
sys.modules.setdefault("transformer_engine", None)  # type: ignore[arg-type]

with warnings.catch_warnings():
    # At import Megatron warns of Apex and Transformer Engine, which no data set needs.
    warnings.simplefilter("ignore")
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder

logging.getLogger("megatron.core.datasets").setLevel(logging.WARNING)

__all__ = [
    "BlendedMegatronDatasetBuilder",
    "DType",
    "GPTDataset",
    "GPTDatasetConfig",
    "IndexedDataset",
    "IndexedDatasetBuilder",
]

"""What must be the same on all nodes of a training."""

import os
from pathlib import Path

_DRIVER = Path("/proc/driver/nvidia/version")
_UNKNOWN = "unknown"


def versions() -> dict[str, str]:
    """Of this node: packages, the project's revision, the GPU driver, how many GPUs this process sees."""
    from pipeline.runs.manifest import environment

    driver = _DRIVER.read_text().splitlines()[0] if _DRIVER.is_file() else _UNKNOWN
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = _UNKNOWN if visible is None else str(len(visible.split(",")))
    packages = {name: value for name, value in environment().items() if name != "host"}
    return packages | {"NVIDIA driver": driver, "visible GPUs": gpus}


def first_difference(of_nodes: dict[str, dict[str, str]], head: str, of_head: dict[str, str]) -> str | None:
    """How a node's versions differ from the first node's, as a line; None if all are equal.

    What is unknown on either side is not compared.
    """
    for node, versions in of_nodes.items():
        for name in sorted(versions.keys() | of_head.keys()):
            there, here = versions.get(name, _UNKNOWN), of_head.get(name, _UNKNOWN)
            if there != here and _UNKNOWN not in (there, here):
                return (
                    f"{node} has {name} {there}, {head} has {here}: all nodes need the same; use one installation that "
                    "all see, or exclude the node in the cluster profile"
                )
    return None

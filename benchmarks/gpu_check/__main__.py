"""Check on a GPU what only a GPU can show, and write down what was found.

Outputs of every layer and gradients of torch's and Transformer Engine's layers in bf16 and FP8 against fp32; that
attention in FP8 is causal; QK-norm; that scales are kept; loss curves of 200 updates; seconds and memory of answers at
16 times the context. Each check prints a line; --out gets all numbers as JSON.

Exit status: 0; 1 if a check fails; 2 without a GPU (but for --size tiny).
"""

import argparse
import gc
import json
import sys
import time
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=("all", "tiny"), default="all", help="tiny: to see that it runs (all)")
    parser.add_argument("--only", default="", help="checks whose names have this in them")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks/gpu_check.json"), help="(%(default)s)")
    arguments = parser.parse_args()
    import torch

    from benchmarks.gpu_check.checks import listed
    from benchmarks.gpu_check.models import group_of_one
    from pipeline.recalibration.layer_agreement import this_device

    device_facts = this_device()
    if device_facts.capability is None and arguments.size != "tiny":
        print("there is no GPU here; --size tiny shows that the checks run", file=sys.stderr)
        return 2
    result = {"device": str(device_facts), "torch": torch.__version__, "checks": {}}
    with group_of_one() as device:
        for name, check in listed(arguments.size, device_facts.transformer_engine is not None, device).items():
            if arguments.only not in name:
                continue
            began = time.perf_counter()
            try:
                facts = check()
            except Exception as error:  # the others shall run too
                facts = {"ok": False, "error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
            result["checks"][name] = facts | {"check_seconds": time.perf_counter() - began}
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(result, indent=1))
            said = {key: value for key, value in facts.items() if key not in ("ok", "curves")}
            print(f"{'ok    ' if facts['ok'] else 'FAILED'} {name}: {json.dumps(said)[:600]}", flush=True)
            torch._dynamo.reset()  # or what was compiled for other checks counts towards the most that it compiles
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return int(not all(facts["ok"] for facts in result["checks"].values()))


if __name__ == "__main__":
    sys.exit(main())

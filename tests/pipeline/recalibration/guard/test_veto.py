"""Updates left out of real DeepSpeed engines, at TP 2 on two data-parallel ranks."""

import json
import math
from pathlib import Path

import pytest

from pipeline.launch.processes import torchrun
from tests.pipeline.recalibration.guard.veto_worker import KINDS, PLAN

_GOOD = [number for number, trouble in enumerate(PLAN) if trouble == "good"]


@pytest.mark.slow
def test_an_update_that_is_left_out_leaves_no_trace(layouts: dict[str, Path], tmp_path: Path) -> None:
    """In every precision and ZeRO stage; also before the first update, where one rank alone has nan."""
    worker = "tests.pipeline.recalibration.guard.veto_worker"
    torchrun(worker, [str(layouts["untied"]), str(tmp_path)], processes=4, log=tmp_path / "log")
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(4)]
    assert all(found == ranks[0] for found in ranks)
    assert list(ranks[0]) == KINDS
    for found in ranks[0].values():
        norms, reasons = found["norms"], found["reasons"]
        infinite = "gradient norm is not finite (inf)"
        assert reasons == [infinite, None, "vetoed", infinite, None]
        assert [math.isinf(norm) for norm in norms] == [reason == infinite for reason in reasons]
        assert found["calls"] == norms  # once per update
        assert [norms[number] for number in _GOOD] == found["plain_norms"]
        assert len(set(found["plain_norms"])) == len(_GOOD)
        assert found["skipped_steps"] == len(PLAN) - len(_GOOD)
        assert found["equal"]

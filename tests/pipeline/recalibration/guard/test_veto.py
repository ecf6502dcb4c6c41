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
    assert all(outcome == ranks[0] for outcome in ranks)
    assert list(ranks[0]) == KINDS
    for outcome in ranks[0].values():
        norms, reasons = outcome["norms"], outcome["reasons"]
        infinite = "gradient norm is not finite (inf)"
        assert reasons == [infinite, None, "vetoed", infinite, None]
        assert [math.isinf(norm) for norm in norms] == [reason == infinite for reason in reasons]
        assert outcome["calls"] == norms  # once per update
        assert [norms[number] for number in _GOOD] == outcome["plain_norms"]
        assert len(set(outcome["plain_norms"])) == len(_GOOD)
        assert outcome["skipped_steps"] == len(PLAN) - len(_GOOD)
        assert outcome["equal"]

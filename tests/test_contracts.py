"""The contracts between packages (pyproject.toml) hold, and each of their rules notices an import that it forbids."""

import itertools
import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import grimp
import networkx
import pytest
from importlinter.api import read_configuration
from importlinter.contracts.forbidden import ForbiddenContract
from importlinter.contracts.independence import IndependenceContract
from importlinter.contracts.layers import LayersContract

ROOT = Path(__file__).resolve().parents[1]
KINDS = {"layers": LayersContract, "forbidden": ForbiddenContract, "independence": IndependenceContract}
CONFIGURATION = read_configuration(str(ROOT / "pyproject.toml"))
CONTRACTS = {options["name"]: options for options in CONFIGURATION["contracts_options"]}
Import = tuple[str, str]
"""The module that imports, and the one that it imports."""

PROMISES = [
    ("foundation.files", "slurm.errors"),
    ("data_prep.plan", "model_surgery.shape"),
    ("model_surgery.convert", "data_prep.rows"),
    ("eval.run", "data_prep.shards"),
    ("eval.run", "pipeline.errors"),
    ("eval.run", "slurm.client"),
    ("eval.scorer", "eval.run"),
    ("eval.tasks.recall", "eval.scorer"),
    ("eval.inputs", "eval.tuning.judging"),
    ("eval.variants.loading", "eval.tasks.forward"),
    ("model_surgery.hub_code.modeling_drope", "model_surgery.errors"),
    ("model_surgery.hub_code.configuration_drope", "foundation.install"),
    ("slurm.client", "pipeline.errors"),
    ("slurm.client", "model_surgery.files"),
    ("pipeline.commands.stages", "pipeline.cli"),
    ("pipeline.tools.doctor", "pipeline.commands.tools"),
    ("pipeline.tools.doctor", "pipeline.cluster.profiles"),
    ("pipeline.cluster.status.run_status", "pipeline.tools.doctor"),
    ("pipeline.stages.order", "pipeline.cluster.stage_jobs"),
    ("pipeline.stages.data", "pipeline.tools.fetch"),
    ("pipeline.report.inputs", "pipeline.stages.order"),
    ("pipeline.recalibration.run", "pipeline.report.inputs"),
    ("pipeline.recalibration.run", "pipeline.stages.training"),
    ("pipeline.runs.local", "pipeline.stages.order"),
    ("pipeline.runs.folder", "pipeline.recalibration.run"),
    ("pipeline.launch.machines", "pipeline.runs.manifest"),
    ("pipeline.launch.machines", "pipeline.recalibration.ranks"),
    ("pipeline.recipe.recipe", "pipeline.launch.processes"),
    ("pipeline.errors", "pipeline.recipe.recipe"),
]
"""Imports that docs/architecture.md says there are none of."""


@pytest.fixture(scope="module")
def imports() -> grimp.ImportGraph:
    """All imports of the project, also those inside functions."""
    return grimp.build_graph(*CONFIGURATION["session_options"]["root_packages"], cache_dir=None)


def is_kept(options: dict[str, Any], graph: grimp.ImportGraph) -> bool:
    """Whether a contract holds."""
    own = {name: value for name, value in options.items() if name not in ("name", "type")}
    kind = KINDS[options["type"]]
    contract = kind(name=options["name"], session_options=CONFIGURATION["session_options"], contract_options=own)
    return bool(contract.check(deepcopy(graph), verbose=False).kept)


def with_import(graph: grimp.ImportGraph, planted: Import) -> grimp.ImportGraph:
    """The imports and one more."""
    more = deepcopy(graph)
    more.add_import(importer=planted[0], imported=planted[1], line_number=1, line_contents="planted")
    return more


def forbidden_imports(options: dict[str, Any]) -> Iterator[Import]:
    """One import that breaks the contract for each of its rules."""
    if options["type"] == "forbidden":
        yield from itertools.product(options["source_modules"], options["forbidden_modules"])
    elif options["type"] == "independence":
        yield from itertools.permutations(options["modules"], 2)
    else:
        for container in options.get("containers", [""]):
            yield from upward_imports(options["layers"], f"{container}." if container else "")


def upward_imports(layers: list[str], prefix: str) -> Iterator[Import]:
    """From each layer into the next one above, and between members of a layer that are independent."""
    members = [[prefix + name.strip(" ()") for name in re.split("[|:]", layer)] for layer in layers]
    for higher, lower in itertools.pairwise(members):
        yield lower[0], higher[-1]
    for layer, names in zip(layers, members, strict=True):
        if "|" in layer:
            yield from itertools.permutations(names, 2)


def circles(graph: grimp.ImportGraph) -> list[list[str]]:
    """Groups of modules that import each other, directly or through others."""
    edges = ((module, other) for module in graph.modules for other in graph.find_modules_directly_imported_by(module))
    together = networkx.strongly_connected_components(networkx.DiGraph(edges))
    return sorted(sorted(modules) for modules in together if len(modules) > 1)


def test_every_kind_of_contract_is_known() -> None:
    assert {options["type"] for options in CONTRACTS.values()} <= KINDS.keys()


@pytest.mark.parametrize("name", CONTRACTS)
def test_a_contract_holds_and_notices_every_import_that_it_forbids(name: str, imports: grimp.ImportGraph) -> None:
    options = CONTRACTS[name]
    assert is_kept(options, imports)
    planted = list(forbidden_imports(options))
    assert planted
    assert [one for one in planted if is_kept(options, with_import(imports, one))] == []


@pytest.mark.parametrize("planted", PROMISES, ids=" imports ".join)
def test_a_promise_is_guarded_by_a_contract(planted: Import, imports: grimp.ImportGraph) -> None:
    assert set(planted) <= imports.modules
    broken = with_import(imports, planted)
    assert not all(is_kept(options, broken) for options in CONTRACTS.values())


def test_the_contract_of_hub_code_names_all_of_model_surgery(imports: grimp.ImportGraph) -> None:
    options = CONTRACTS["model_surgery.hub_code imports nothing of the project"]
    roots = {*CONFIGURATION["session_options"]["root_packages"]} - {"model_surgery"}
    others = imports.find_children("model_surgery") - {"model_surgery.hub_code"}
    assert set(options["forbidden_modules"]) == roots | others


def test_no_modules_import_each_other(imports: grimp.ImportGraph) -> None:
    """Nor through others, nor by imports inside functions."""
    assert circles(imports) == []


@pytest.mark.parametrize(
    "path",
    [
        ("pipeline.recipe.recipe", "pipeline.recipe.yaml_files"),
        ("model_surgery.shape", "slurm.errors", "eval.errors", "model_surgery.errors"),
    ],
    ids=" to ".join,
)
def test_a_planted_circle_is_noticed(path: tuple[str, ...], imports: grimp.ImportGraph) -> None:
    broken = imports
    for planted in itertools.pairwise([*path, path[0]]):
        broken = with_import(broken, planted)
    assert any(set(path) <= set(modules) for modules in circles(broken))


def test_an_import_inside_a_function_closes_a_circle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "planted_circle"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "first.py").write_text("from planted_circle import second\n")
    (package / "second.py").write_text("def late():\n    from planted_circle.first import second\n")
    monkeypatch.syspath_prepend(tmp_path)
    graph = grimp.build_graph("planted_circle", cache_dir=None)
    assert circles(graph) == [["planted_circle.first", "planted_circle.second"]]

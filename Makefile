# make demo   the paper's experiment in miniature, then the name of its report
# make test   linters, import contracts, types and all tests that matter; make test-all: the others, which take long
# make trial-cluster, make trial-cluster-stop   a real SLURM of three nodes on this machine, to try drope submit (root, Debian)
# make lint   linters, import contracts and types; make format mends what can be mended
# make smollm2   the real model and the text that recipes/smollm2-135m.yaml reads
# make setup  only the virtual environment .venv; both of the above do it by themselves

.PHONY: demo smollm2 lint format test test-all quick setup clean trial-cluster trial-cluster-stop

TRIAL = tests/slurm/trial_cluster/cluster.sh

setup: .venv/ready

.venv/ready: bootstrap.sh setup.py constraints.txt
	./bootstrap.sh

demo: .venv/ready
	.venv/bin/drope demo

smollm2: .venv/ready
	.venv/bin/python -m recipes.inputs runs/smollm2-135m-inputs

lint: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports
	.venv/bin/mypy

format: .venv/ready
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

test: lint
	.venv/bin/python -m pytest --check-skips -m "not long" --fork -n 2 --dist loadfile --no-loadscope-reorder

test-all: .venv/ready
	.venv/bin/python -m pytest --check-skips -m long --fork -n 2 --dist loadfile --no-loadscope-reorder

quick: .venv/ready
	.venv/bin/python -m pytest -m "not slow"

trial-cluster:
	$(TRIAL) start /tmp/drope-trial-cluster -n 3 -c 4 -g 0

trial-cluster-stop:
	$(TRIAL) stop /tmp/drope-trial-cluster

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .import_linter_cache

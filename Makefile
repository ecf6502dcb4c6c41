# make demo   the paper's experiment in miniature, then the name of its report
# make test   linters, import contracts and all tests
# make setup  only the virtual environment .venv; both of the above do it by themselves

.PHONY: demo test quick setup clean

setup: .venv/ready

.venv/ready: bootstrap.sh setup.py constraints.txt
	./bootstrap.sh

demo: .venv/ready
	.venv/bin/drope demo

test: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports
	.venv/bin/python -m pytest -m "not slow" -n 2 --dist loadfile
	.venv/bin/python -m pytest -m slow

quick: .venv/ready
	.venv/bin/python -m pytest -m "not slow"

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .import_linter_cache

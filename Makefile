.PHONY: all install test lint docs wheel

all: install lint test docs wheel

install:
	pip install -e ".[dev,docs]"

test:
	pytest -q -n 2

lint:
	ruff check .
	ruff format --check .
	mypy
	interrogate -q pyro_zf
	python notebooks/run.py --check

docs:
	sphinx-build -W --keep-going -q docs docs/_build

wheel:
	python -m build
	check-wheel-contents dist/*.whl

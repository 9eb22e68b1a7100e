# make check: everything that must pass before a commit. make docs: the documentation site in site/.
.PHONY: check lint types test docs

check: lint types test docs

lint:
	ruff check .
	ruff format --check .
	lint-imports

types:
	mypy

test:
	pytest -n 2

docs:
	mkdocs build

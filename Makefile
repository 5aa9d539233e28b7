# `make check` is the inner loop; `.ci/run` runs everything.
.PHONY: check lint typing fast test

check: lint fast

lint: typing
	ruff format --check .
	ruff check .
	mypy

# Type checkers do not follow the import hook of an editable install. They read the same files
# through these links.
typing:
	@mkdir -p build/typing/edgec
	@for folder in compiler models targets; do \
		ln -sfn ../../../$$folder build/typing/edgec/$$folder; \
	done

fast:
	python -m pytest -q -n auto --dist loadfile -m "not slow"

test:
	python -m pytest -q -n auto --dist loadfile

"""Two processes share the tests (see pyproject.toml), so each computes with one thread."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

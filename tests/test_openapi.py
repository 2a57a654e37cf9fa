"""The OpenAPI document against the server: schemathesis makes requests from it and checks each answer."""

import subprocess
import sys
from pathlib import Path

import pytest

from serving import live, models_folder

LIMITS = {"max_rows": 8, "max_num_samples": 64, "max_cost": 512, "max_body_bytes": 100_000}
KEYS = {"api_keys": "a-key", "admin_keys": "an-admin-key"}


@pytest.mark.clients
@pytest.mark.parametrize(("keys", "headers"), [({}, []), (KEYS, ["-H", "Authorization: Bearer an-admin-key"])])
def test_what_the_document_says_holds(keys, headers, tmp_path):
    """All checks, in all phases; with keys also that none of them can be left out where one is needed."""
    pytest.importorskip("schemathesis")
    config = Path(__file__).with_name("schemathesis.toml")
    with live(models=models_folder() / "one", **LIMITS, **keys) as http:
        command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run",
                   f"{http.base_url}/openapi.json".replace("//openapi", "/openapi"), "--checks", "all",
                   "--max-examples", "50", "--generation-deterministic", "--no-color", *headers]  # fmt: skip
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

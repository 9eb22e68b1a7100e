"""Installed packages have no known advisories, and none is older than pyproject.toml asks for."""

import importlib.metadata
import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_installed_packages_are_as_new_as_asked():
    old = []
    for line in PROJECT["dependencies"]:
        requirement = Requirement(line)
        if not requirement.specifier.contains(version := importlib.metadata.version(requirement.name)):
            old.append(f"{line}: {version}")
    assert not old


@pytest.mark.slow
def test_pip_audit_knows_no_advisory():
    """Skips without pip-audit, and where no index answers."""
    program = shutil.which("pip-audit", path=str(Path(sys.executable).parent)) or shutil.which("pip-audit")
    if program is None:
        pytest.skip('pip-audit is not installed: pip install "saccade[dev]"')
    words = [program, "--local", "--format", "json", "--progress-spinner", "off"]
    try:
        answer = subprocess.run(words, capture_output=True, text=True, timeout=600, check=False)
        packages = json.loads(answer.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        pytest.skip("no index answers pip-audit")
    audited = [package for package in packages if "skip_reason" not in package]
    if len(audited) < len(packages) / 2:
        pytest.skip(f"the index knows {len(audited)} of {len(packages)} packages")
    found = {p["name"]: [v["id"] for v in p["vulns"]] for p in audited if p["vulns"]}
    assert not found

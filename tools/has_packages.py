"""Prints the path of the Python that runs this, if it has every package of pyproject.toml in range and, installed from
this very folder, ikmlib, so that notebooks opened by hand find it; fails if not."""
import json
import sys
import tomllib
from importlib.metadata import distributions, version
from pathlib import Path

from packaging.requirements import Requirement  # matplotlib and others bring it

root = Path(__file__).resolve().parents[1]
project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
for wanted in map(Requirement, project["dependencies"] + project["optional-dependencies"]["test"]):
    if not wanted.specifier.contains(version(wanted.name), prereleases=True):
        sys.exit(f"{wanted.name} {version(wanted.name)} is not in {wanted.specifier}")
found = [json.loads(copy.read_text("direct_url.json") or "{}").get("url") for copy in distributions(name="ikmlib")]
if root.as_uri() not in found:   # the project's own .egg-info, which has no such file, is found too
    sys.exit(f"ikmlib is not installed from {root}")
print(sys.executable)

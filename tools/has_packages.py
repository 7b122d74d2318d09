"""Prints the path of the Python that runs this, if it has every package of pyproject.toml in range; fails if not."""
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

from packaging.requirements import Requirement  # matplotlib and others bring it

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))["project"]
for wanted in map(Requirement, project["dependencies"] + project["optional-dependencies"]["test"]):
    if not wanted.specifier.contains(version(wanted.name), prereleases=True):
        sys.exit(f"{wanted.name} {version(wanted.name)} is not in {wanted.specifier}")
print(sys.executable)

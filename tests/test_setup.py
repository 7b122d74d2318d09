"""The environment files agree with each other, and the set-up script does what its help says."""
from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ikmlib.config import PROFILES, ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WANTED = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]
SCRIPTS = ("run_all.sh", "run_tests.sh", ".ci/run")


# --- the files ------------------------------------------------------------------------------------------------------


def test_conda_environment_equals_pyproject():
    *conda, from_pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert conda == ["python" + PROJECT["requires-python"], "pip"]
    *packages, project = from_pip["pip"]
    assert project == "-e ."
    assert sorted(map(str, map(Requirement, packages))) == sorted(map(str, map(Requirement, WANTED)))


def test_every_range_has_both_ends():
    for requirement in map(Requirement, WANTED):
        assert {spec.operator for spec in requirement.specifier} == {">=", "<"}, requirement


def test_constraints_pin_every_dependency_within_its_range():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = {}
    for line in lines:
        name, _, version = line.partition("==")   # no options, no paths, no ranges
        assert canonicalize_name(name, validate=True) not in pins, f"{name} is pinned twice"
        pins[canonicalize_name(name)] = version
    for requirement in map(Requirement, WANTED):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement
    assert pins["torch"] == "2.13.0"


def test_citation_names_this_version_and_the_paper():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["title"] == (ROOT / "README.md").read_text().splitlines()[0].removeprefix("# ")
    assert (cited["version"], cited["license"]) == (PROJECT["version"], PROJECT["license"])
    assert cited["authors"][0]["name"] in (ROOT / "LICENSE").read_text()
    assert cited["references"][0]["url"] == "https://arxiv.org/abs/2111.08362"


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_executable_bash(script):
    assert os.access(ROOT / script, os.X_OK)
    assert (ROOT / script).read_text().startswith("#!/usr/bin/env bash\n")
    subprocess.run(["bash", "-n", ROOT / script], check=True)


# --- run_all.sh -----------------------------------------------------------------------------------------------------


def run(script: Path, *arguments: str, folder: Path = Path("/"), **environment: str) -> subprocess.CompletedProcess:
    """Runs a script from another folder, with nothing but `environment` and a PATH."""
    environment.setdefault("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    return subprocess.run(["bash", script, *arguments], cwd=folder, env=environment, capture_output=True, text=True,
                          timeout=60, check=False)


def test_help():
    result = run(ROOT / "run_all.sh", "--help")
    assert result.returncode == 0 and result.stdout.startswith("Usage: ./run_all.sh") and result.stderr == ""
    assert all(word in result.stdout for word in ("--profile", "--only", "--no-train", "--setup-only", *PROFILES))
    assert all(profile.summary in result.stdout for profile in PROFILES.values())


@pytest.mark.parametrize("arguments, said", [
    (["--profile", "huge"], ["invalid choice: 'huge'", "auto", *PROFILES]),
    (["--profile=", "--only", "04"], ["invalid choice: ''", "auto"]),
    (["--setup-only", "--fast"], ["unknown: --fast", "--profile NAME", "--only NN", "--no-train"]),
    (["smoke"], ["unknown: smoke"]),
    (["--profile"], ["--profile: expected one argument"]),
    (["--only", "77"], ["no notebook '77'", "there are: 04_table3"]),
])
def test_mistakes_are_refused_before_any_installation(project, arguments, said):
    start = time.monotonic()
    result = run(project / "run_all.sh", *arguments)
    assert result.returncode == 2 and result.stdout == ""
    assert all(words in result.stderr for words in said)
    assert time.monotonic() - start < 20 and not (project / ".venv").exists()


@pytest.fixture
def project(tmp_path) -> Path:
    """A copy of the project's set-up files that depends on a package that no Python has."""
    folder = tmp_path / "a project"
    for name in ("ikmlib", "tools"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("run_all.sh", "run_tests.sh", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    (folder / "notebooks").mkdir()
    (folder / "notebooks" / "04_table3.ipynb").touch()
    depend_on(folder, "no-such-package-ikm")
    return folder


def depend_on(project: Path, package: str, installed: Path | None = None) -> str:
    """The project depends on one package. Returns a folder for PYTHONPATH from which ikmlib seems to be installed from
    `installed`, by default the project."""
    (project / "pyproject.toml").write_text(
        f'[project]\ndependencies = ["{package}"]\n[project.optional-dependencies]\ntest = []\n')
    (project / "ikmlib.egg-info").mkdir(exist_ok=True)   # an installation leaves it
    (project / "ikmlib.egg-info" / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: ikmlib\nVersion: 0.1.0\n")
    folder = project.parent / "site"
    (folder / "ikmlib-0.1.0.dist-info").mkdir(parents=True, exist_ok=True)
    (folder / "ikmlib-0.1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: ikmlib\nVersion: 0.1.0\n")
    (folder / "ikmlib-0.1.0.dist-info" / "direct_url.json").write_text(
        f'{{"url": "{(installed or project).as_uri()}", "dir_info": {{"editable": true}}}}')
    return str(folder)


def replace_main(project: Path, code: str) -> None:
    """`code` is run by `python -m ikmlib run` after the arguments were found good."""
    (project / "ikmlib" / "__main__.py").write_text(f"import sys; '--dry-run' in sys.argv and sys.exit()\n{code}")


@pytest.fixture
def stub(tmp_path) -> Path:
    """The folder of a `python3` that stands in for Python: it notes installations, which fail while `broken` is there.

    What it notes is in `log` beside it. Its virtual environments hold a copy of it, which claims to have all packages.
    Like pip, it refuses to install for the user in a virtual environment, and here to heed the caller's constraints.
    """
    folder = tmp_path / "stub"
    folder.mkdir()
    (folder / "python3").write_text(f"""#!/bin/bash
        note() {{ echo "$*" >> {folder}/log; }}
        last=${{@: -1}}
        case "$*" in
            "-m venv --clear "*) note venv; rm -rf "$last"; mkdir -p "$last/bin"; cp "$0" "$last/bin/python" ;;
            "-m pip "*"install "*) note "pip $last"; ! [ -e {folder}/broken ] && [ "$PIP_USER$PIP_CONSTRAINT" = 0 ] ;;
            "-c "*) echo "$0" ;;
            *) case "$0" in */.venv/*) echo "$0" ;; *) exec {sys.executable} "$@" ;; esac ;;
        esac
    """)
    (folder / "python3").chmod(0o755)
    return folder


def test_installs_once_and_again_when_needed(project, stub):
    log = stub / "log"
    whole = ["venv", "pip torch", f"pip {project}[test]"]

    def set_up(**environment: str) -> tuple[int, list[str]]:
        log.write_text("")
        result = run(project / "run_all.sh", "--setup-only", PATH=f"{stub}:/usr/bin:/bin", **environment)
        assert result.stdout == ("" if result.returncode else f"{project}/.venv/bin/python\n"), result.stderr
        return result.returncode, log.read_text().splitlines()

    (stub / "broken").touch()
    assert set_up() == (1, whole)
    (stub / "broken").unlink()
    assert set_up(PIP_USER="1") == (0, whole)   # the unfinished installation is done again
    assert set_up() == (0, [])                  # and then used
    with open(project / "constraints.txt", "a") as file:
        file.write("# changed\n")
    assert set_up() == (0, whole)
    shutil.rmtree(project / ".venv" / "bin")
    assert set_up(PIP_CONSTRAINT="/nowhere") == (0, whole)
    project = project.rename(project.with_name("moved"))
    whole[2] = f"pip {project}[test]"
    assert set_up() == (0, whole)
    assert set_up() == (0, [])


def test_unreachable_torch_index_is_no_failure(project, stub):
    program = (stub / "python3").read_text()
    (stub / "python3").write_text(program.replace("! [ -e", '[[ "$*" != *index-url* ]] && ! [ -e'))
    result = run(project / "run_all.sh", "--setup-only", PATH=f"{stub}:/usr/bin:/bin", IKM_TORCH_INDEX="file:///none")
    assert result.returncode == 0 and "no torch from file:///none; taking the default one" in result.stderr
    assert (stub / "log").read_text().splitlines() == ["venv", "pip torch", f"pip {project}[test]"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch brings no CUDA")
@pytest.mark.parametrize("driver", [False, True])
def test_without_an_nvidia_driver_torch_comes_from_pytorchs_cpu_index(project, stub, driver):
    if driver:
        (stub / "nvidia-smi").symlink_to("/bin/true")
    elif shutil.which("nvidia-smi", path="/usr/bin:/bin"):
        pytest.skip("there is a driver here")
    program = (stub / "python3").read_text()
    (stub / "python3").write_text(program.replace('note "pip $last"', 'note "$*"'))
    assert run(project / "run_all.sh", "--setup-only", PATH=f"{stub}:/usr/bin:/bin").returncode == 0
    _, *torch, everything = (stub / "log").read_text().splitlines()   # the first is the virtual environment's
    assert everything.endswith(f"-e {project}[test]") and len(torch) == (not driver)
    for line in torch:
        assert "--timeout 10" in line and "--index-url https://download.pytorch.org/whl/cpu " in line


def test_no_python_is_a_clear_error(project, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("bash", "dirname", "cat", "readlink"):
        (tools / tool).symlink_to(shutil.which(tool))
    result = run(project / "run_all.sh", PATH=str(tools))
    assert result.returncode == 1 and "needs Python >= 3.11 with its venv module" in result.stderr
    assert run(project / "run_all.sh", "--help", PATH=str(tools)).returncode == 0


def test_complete_python_is_used_and_gets_the_arguments(project):
    site = depend_on(project, "pytest>=8")
    replace_main(project, "print(*sys.argv[1:]); sys.exit(3)")
    used = Path(run(project / "run_all.sh", "--setup-only", PYTHONPATH=site).stdout.strip())
    assert used.is_file() and used.parent.samefile(Path(sys.executable).parent)
    result = run(project / "run_all.sh", "--profile", "cpu", "--only=04", "--only", "07", "--no-train", PYTHONPATH=site)
    assert (result.returncode, result.stdout) == (3, "run --profile cpu --only=04 --only 07 --no-train\n")
    result = run(project / "run_tests.sh", "--version", PYTHONPATH=site)
    assert result.returncode == 0 and (result.stdout + result.stderr).startswith("pytest ")
    assert not (project / ".venv").exists()


def test_python_with_a_package_out_of_range_is_not_used(project, stub):
    depend_on(project, "pytest<8")
    result = run(project / "run_all.sh", "--setup-only", PATH=f"{stub}:/usr/bin:/bin")
    assert result.stdout == f"{project}/.venv/bin/python\n"


def test_python_with_another_folders_ikmlib_is_not_used(project, stub, tmp_path):
    """Notebooks that are opened by hand import what is installed."""
    for installed, used in ((project, sys.executable), (tmp_path / "another clone", f"{project}/.venv/bin/python")):
        site = depend_on(project, "pytest>=8", installed)
        result = run(project / "run_all.sh", "--setup-only", PATH=f"{stub}:/usr/bin:/bin", PYTHONPATH=site)
        assert result.stdout == f"{used}\n"


def test_the_callers_surroundings_do_not_matter(project, tmp_path):
    """Another checkout and modules in the caller's folder, CDPATH, and a locale that cannot write UTF-8."""
    site = depend_on(project, "pytest>=8")
    replace_main(project, "import random, ikmlib; print(random.__file__, ikmlib.__file__, 'é', sys.stdout.encoding)")
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(project, elsewhere / project.name)
    shutil.copytree(project / "ikmlib", elsewhere / "ikmlib")
    for module in ("ikmlib/__init__", "ikmlib/__main__", "random", "packaging", "tomllib", "venv"):
        (elsewhere / f"{module}.py").write_text("raise SystemExit('the wrong module')")
    (elsewhere / "link.sh").symlink_to(project / "run_all.sh")
    for folder, script in ((elsewhere, project / "run_all.sh"), (tmp_path, Path(project.name) / "run_all.sh"),
                           (elsewhere, Path("link.sh"))):
        result = run(script, folder=folder, CDPATH=str(elsewhere), LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0",
                     PYTHONPATH=f":.:{tmp_path}:{site}", PYTHONHOME="/nowhere")
        assert result.returncode == 0, result.stderr
        assert result.stdout == f"{random.__file__} {project / 'ikmlib' / '__init__.py'} é utf-8\n"


@pytest.mark.parametrize("name", ["a:b", "a$b"])
def test_a_path_that_serves_no_environment_is_a_clear_error(project, name):
    project = project.rename(project.with_name(name))
    result = run(project / "run_all.sh", "--setup-only")
    assert (result.returncode, result.stdout) == (2, "") and len(result.stderr.splitlines()) == 1
    assert f": or $ in its path: move {project}" in result.stderr


def test_an_installation_without_all_packages_is_a_clear_error(project, stub):
    program = (stub / "python3").read_text()
    (stub / "python3").write_text(program.replace('*) case "$0" in', '*has_packages*) exit 1 ;;\n *) case "$0" in'))
    result = run(project / "run_all.sh", "--setup-only", PATH=f"{stub}:/usr/bin:/bin")
    assert result.returncode == 1 and "pip installed less than the study needs" in result.stderr


def test_what_jupyterlab_saves_into_a_notebook_is_no_change_of_it(tmp_path):
    """The filter that run_all.sh sets, on a clone, with outputs, a count and another Python's version in a notebook."""
    def git(*words):
        return subprocess.run(["git", "-C", clone, *words], capture_output=True, text=True, check=True).stdout

    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
    line = next(line for line in (ROOT / "run_all.sh").read_text().split("\n[") if "filter.nbstripout.clean" in line)
    environment = {"root": clone, "python": sys.executable, "PATH": os.environ["PATH"]}
    subprocess.run(["bash", "-ec", "[" + line], env=environment, check=True)
    path = clone / "notebooks" / "04_table3_attention.ipynb"
    notebook = json.loads(path.read_text())
    cell = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    cell |= {"execution_count": 7, "outputs": [{"output_type": "stream", "name": "stdout", "text": ["x\n"]}]}
    notebook["metadata"]["language_info"]["version"] = "3.99.0"
    path.write_text(json.dumps(notebook, indent=1) + "\n")
    git("add", "-A")
    assert git("status", "--porcelain") == ""
    cell["source"].append("# changed")
    path.write_text(json.dumps(notebook, indent=1) + "\n")
    assert git("status", "--porcelain") == f" M notebooks/{path.name}\n"


def test_a_clone_made_on_windows_has_the_same_bytes(tmp_path):
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", "-c", "core.autocrlf=true", ROOT, clone], check=True)
    for name in ("run_all.sh", "results/PLAN.md", "ikmlib/registry.csv", "notebooks/04_table3_attention.ipynb"):
        assert b"\r" not in (clone / name).read_bytes()

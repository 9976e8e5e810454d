"""The locks hold what pyproject.toml asks for, agree with each other and work with any index."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.docs.measures import ROOT

REQUIREMENTS = ROOT / "requirements"
PEERS = ROOT / "tests" / "bench" / "peers" / "requirements"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

_PIN = re.compile(r"^(\S+==\S+(?: ; [^\\]+)?) \\$")
_HASH = re.compile(r"^    --hash=sha256:[0-9a-f]{64}(?: \\)?$")
_ADDRESS = re.compile(r"://|-index|--find-links|--trusted-host| @ ")


def listed(path: Path) -> list[Requirement]:
    """The requirements of a file that is written by hand, and of those that it names with -r."""
    requirements: list[Requirement] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("-r "):
            requirements += listed(path.parent / line.removeprefix("-r "))
        elif line and not line.startswith("#"):
            requirements.append(Requirement(line))
    return requirements


def pins(lock: Path) -> dict[str, Requirement]:
    """The pins of a lock by name."""
    lines = lock.read_text(encoding="utf-8").splitlines()
    pinned = [Requirement(match[1].strip()) for line in lines if (match := _PIN.match(line))]
    return {canonicalize_name(pin.name): pin for pin in pinned}


def of_project(*extras: str) -> list[Requirement]:
    """What the project needs, with extras."""
    names = list(PROJECT["dependencies"])
    for extra in extras:
        names += PROJECT["optional-dependencies"][extra]
    return [Requirement(name) for name in names]


BUILD, TRAIN = listed(REQUIREMENTS / "build.in"), listed(REQUIREMENTS / "train.in")
EXCLUDED = {requirement.name for requirement in listed(REQUIREMENTS / "excludes.in")}
WANTED = {
    REQUIREMENTS / "build.txt": BUILD,
    REQUIREMENTS / "serve.txt": of_project(),
    REQUIREMENTS / "train.txt": [*of_project("train"), *TRAIN, *BUILD],
    REQUIREMENTS / "dev.txt": [*of_project("train", "dev"), *TRAIN, *BUILD],
    REQUIREMENTS / "eval.txt": [*of_project("train", "dev", "eval"), *TRAIN, *BUILD],
} | {path: listed(path.with_suffix(".in")) for path in sorted(PEERS.glob("*.txt"))}
"""Every lock and the requirements that it is made of, as the Makefile says."""
DEV = pins(REQUIREMENTS / "dev.txt")


def relative(path: Path) -> str:
    """A file's name in the checkout."""
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("lock", WANTED, ids=relative)
def test_a_lock_has_a_right_version_of_everything_that_is_asked_for(lock: Path) -> None:
    pinned = pins(lock)
    for wanted in WANTED[lock]:
        if wanted.name in EXCLUDED:
            continue
        pin = pinned.get(canonicalize_name(wanted.name))
        assert pin is not None, f"{wanted.name} is missing: make lock"
        (version,) = pin.specifier
        assert wanted.specifier.contains(version.version), f"{pin} for {wanted}: make lock"


def test_torch_has_the_version_that_is_asked_for() -> None:
    wanted = {requirement.name: requirement for requirement in of_project("train")}
    (torch,) = listed(REQUIREMENTS / "torch.txt")
    assert (torch.name, torch.specifier) == ("torch", wanted["torch"].specifier)


@pytest.mark.parametrize("name", ["build", "serve", "train"])
def test_the_smaller_locks_are_parts_of_the_development_lock(name: str) -> None:
    for package, pin in pins(REQUIREMENTS / f"{name}.txt").items():
        assert package in DEV, package
        assert pin.specifier == DEV[package].specifier, package


def test_the_scorer_beside_other_servers_has_the_versions_of_this_one() -> None:
    for requirement in listed(PEERS / "scorer.in"):
        name = "onnxruntime-gpu" if requirement.name == "onnxruntime" else requirement.name
        assert requirement.specifier == DEV[name].specifier, name


@pytest.mark.parametrize("lock", WANTED, ids=relative)
def test_a_lock_has_hashes_and_names_no_index(lock: Path) -> None:
    lines = lock.read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if _ADDRESS.search(line)]
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        if line and not line.startswith((" ", "#")):
            assert _PIN.match(line), f"not a pin: {line}"
            assert _HASH.match(below), f"no hash: {line}"

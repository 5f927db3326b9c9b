"""A stock kernel with core scheduling (CONFIG_SCHED_CORE), which Debian's kernels leave out.

It is Ubuntu's, and has what a host needs to boot built in. It finds the threads of cores that TCG
emulates, for which it has to be 6.17 or later: TCG does not have AMD's topology extensions.

Its KVM may end a guest that writes to a device (KVM_INTERNAL_ERROR_DELIVERY_EV): it seems to take
an exception that it injected before, whose type TCG leaves in the VMCB without the valid bit, for
one that is being delivered. So tests that need no such kernel have Debian's 6.1.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from cerne.host.programs import require_program
from cerne.images.files import locked, work_directory
from cerne.images.packages import unpack

_SUITE = "noble-updates"
# The key of another distribution is not here: what runs it is a virtual machine of a test.
_SOURCE = f"deb [trusted=yes] http://archive.ubuntu.com/ubuntu {_SUITE} main\n"
_IMAGE = r"linux-image-(6\.17\.[0-9]+-([0-9]+)-generic)"


def kernel_with_core_scheduling(cache: Path) -> Path:
    """The directory of the unpacked kernel and its modules, fetched if the cache has none."""
    directory = cache / "kernel"
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / f"ubuntu-{_SUITE}"
    with locked(directory / "ubuntu.lock"):
        if not target.exists():
            with work_directory(directory) as work:
                _fetch(work, work / "tree")
                (work / "tree").rename(target)
    return target


def _fetch(work: Path, tree: Path) -> None:
    (work / "sources.list").write_text(_SOURCE)
    for place in ("lists/partial", "cache/archives/partial"):
        (work / place).mkdir(parents=True)
    _apt(work, "apt-get", "-q", "update")
    names = _apt(work, "apt-cache", "pkgnames", "linux-image-6.17")
    found = [match for name in names.split() if (match := re.fullmatch(_IMAGE, name))]
    version = max(found, key=lambda match: int(match[2]))[1]
    _apt(work, "apt-get", "-q", "download", f"linux-image-{version}", f"linux-modules-{version}")
    for package in work.glob("*.deb"):
        unpack(package, tree)


def _apt(work: Path, program: str, *words: str) -> str:
    settings: dict[str, str | Path] = {
        "Dir::Etc::sourcelist": work / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": work / "lists",
        "Dir::Cache": work / "cache",
        "APT::Sandbox::User": "root",
    }
    options = [f"-o{name}={value}" for name, value in settings.items()]
    command: list[str | Path] = [require_program(program), *options, *words]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=True)
    return done.stdout

"""Applies rules by nft(8) in JSON (libnftables-json(5)), in the namespace of its caller."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping

from cerne.errors import HostError
from cerne.host.programs import require_program


def apply(rules: Mapping[str, object]) -> None:
    """Apply rules in one transaction.

    Raises:
        HostError: the kernel or nft refuses them; nothing has changed.
        MissingProgramError: nft is not installed.
    """
    done = _run("--echo", "--file", "-", given=json.dumps(rules))
    # nft ignores JSON that it does not read, with a status of success; then it echoes nothing.
    if done.returncode or not done.stdout.strip():
        lines = (done.stderr or "it ignored them").strip().splitlines()
        raise HostError(
            f"setting the network's rules failed: {lines[0]}",
            hint="see whether the kernel has nf_tables: sudo modprobe nf_tables",
        )


def has_chain(family: str, table: str, chain: str) -> bool:
    """Whether a chain is there."""
    return not _run("list", "chain", family, table, chain).returncode


def chains() -> list[dict[str, object]]:
    """All chains of this namespace.

    Raises:
        HostError: nft refuses.
    """
    return _listed("chain", "list", "chains")


def rules(family: str, table: str, chain: str) -> list[dict[str, object]]:
    """The rules of a chain; none if it is not there.

    Raises:
        HostError: nft refuses.
    """
    return _listed("rule", "list", "chain", family, table, chain)


def _listed(kind: str, *command: str) -> list[dict[str, object]]:
    done = _run(*command)
    try:
        found = json.loads(done.stdout)["nftables"] if done.stdout.strip() else []
    except (ValueError, KeyError) as error:
        raise HostError(f"nft listed no {kind}s") from error
    return [item[kind] for item in found if kind in item]


def _run(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(require_program("nft")), "--json", *arguments],
        input=given,
        capture_output=True,
        text=True,
        check=False,
        env={"LC_ALL": "C"},
    )

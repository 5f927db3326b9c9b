"""What a guest's TCP connections carry: iperf3 from guest to host, back, and between two guests.

All guests are of the image `tiny` on QEMU, with iperf3 in them. Cerne's are on networks with names,
and on a card of their own; beside them stand plain QEMU on a tap of a bridge without any rule, on
passt without our supervisor, and on its own user mode, in the same run. "Host" is a namespace
behind a veth pair, with iperf3's server.

A native guest's kernel is emulated on some hosts, and its TCP with it, so the native engine is
measured by guests of a few bytes (`net.py`): frames a second on a tap. Needs root.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import net
from _measure import Sample, print_table
from cerne.host.programs import require_program
from cerne.images.cpio import CpioWriter
from cerne.manager import Manager
from cerne.network.passt import passt_command
from cerne.network.tap import make_tap

_CERNE = str(Path(sys.executable).with_name("cerne"))
_RUNS, _SECONDS = 3, 2
_LAN, _OUTSIDE = "bench-lan", "bench-out"
# A network with the uplink `nat` forwards to no interface of another, by its name.
_VETH, _SERVER = "bench-out", "198.51.100.2"
_IPERF = "/i/run"
_MAC, _OTHER_MAC = "02:00:00:00:00:a1", "02:00:00:00:00:a2"
_BY_HAND = f"""#!/bin/sh
mount -t proc proc /proc
mount -t devtmpfs dev /dev
ip link set lo up
ip address add $ADDRESS/24 dev eth0
ip link set eth0 up
[ -z "$GATEWAY" ] || ip route add default via $GATEWAY
stty -echo
echo READY
[ -z "$SERVER" ] || exec sh {_IPERF} -s
while read server back; do
    sh {_IPERF} -J -t {_SECONDS} $back -c $server
    echo DONE
done
"""

Way = Callable[[str, bool], float]
"""Gigabits a second with a server at an address; True for its way back."""


@dataclass(frozen=True, slots=True)
class _Row:
    what: str
    measure: Way
    other: str | None
    """The address of another guest on the network, which has a server."""


def main() -> None:
    """Measure, and print the tables."""
    with contextlib.ExitStack() as left:
        work = Path(left.enter_context(tempfile.TemporaryDirectory(prefix="cerne-", dir="/tmp")))
        os.environ["CERNE_HOME"] = str(work)
        _program(work / "i")
        left.enter_context(_outside())
        rows = [*_with_cerne(left, work), *_by_hand(left, work)]
        rounds = [[_run(row) for row in rows] for _ in range(_RUNS)]
    table = [
        (row.what, *(map(_text, zip(*runs, strict=True))))
        for row, runs in zip(rows, zip(*rounds, strict=True), strict=True)
    ]
    title = f"TCP by iperf3, gigabits a second, {_SECONDS} s each; {_RUNS} runs in turn"
    print_table(title, ("guest on QEMU", "to the host", "from the host", "to a guest"), table)
    net.main()


def _run(row: _Row) -> tuple[float, float, float | None]:
    there, back = (row.measure(_SERVER, back) for back in (False, True))
    return there, back, None if row.other is None else row.measure(row.other, False)


def _text(values: Sequence[float | None]) -> str:
    measured = tuple(value for value in values if value is not None)
    return Sample(measured).text(digits=2) if measured else "-"


def _received(said: str) -> float:
    """What a client says that its server, or itself on the way back, has received."""
    report = json.loads(said[said.index("{") : said.rindex("}") + 1])
    if "error" in report:
        raise SystemExit(f"iperf3: {report['error']}")
    return float(report["end"]["sum_received"]["bits_per_second"]) / 1e9


def _program(directory: Path) -> None:
    """iperf3, its libraries and a script that runs it with them."""
    directory.mkdir()
    iperf = require_program("iperf3")
    listed = subprocess.run(["ldd", iperf], check=True, capture_output=True, text=True).stdout
    words = [word for word in listed.split() if word.startswith("/")]
    for path in (iperf, *map(Path, words)):
        (directory / path.name).write_bytes(path.read_bytes())
        (directory / path.name).chmod(0o755)
    (loader,) = directory.glob("ld-*")
    script = directory / "run"
    script.write_text(f'#!/bin/sh\nexec /i/{loader.name} --library-path /i /i/iperf3 "$@"\n')
    script.chmod(0o755)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@contextlib.contextmanager
def _outside() -> Iterator[None]:
    """A namespace behind a veth pair, with a server."""
    _ip("netns", "add", _OUTSIDE)
    try:
        _ip("link", "add", _VETH, "type", "veth", "peer", "name", "eth0", "netns", _OUTSIDE)
        _ip("address", "add", "198.51.100.1/30", "dev", _VETH)
        _ip("link", "set", _VETH, "up")
        _ip("-n", _OUTSIDE, "address", "add", f"{_SERVER}/30", "dev", "eth0")
        _ip("-n", _OUTSIDE, "link", "set", "eth0", "up")
        # Replies to a guest behind `nat` come in here.
        Path(f"/proc/sys/net/ipv4/conf/{_VETH}/forwarding").write_text("1")
        with _process("ip", "netns", "exec", _OUTSIDE, "iperf3", "-s"):
            yield
    finally:
        _ip("netns", "delete", _OUTSIDE)
        subprocess.run(["ip", "link", "delete", _VETH], check=False, stderr=subprocess.DEVNULL)


@contextlib.contextmanager
def _process(*words: str) -> Iterator[None]:
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _cerne(*words: str) -> str:
    return subprocess.run([_CERNE, *words], check=True, capture_output=True, text=True).stdout


def _with_cerne(left: contextlib.ExitStack, work: Path) -> Iterator[_Row]:
    """The rows of our machines."""
    names: list[str] = []
    left.callback(lambda: _cerne("rm", "--force", *names) if names else None)

    def run(name: str, *options: str) -> None:
        kind = ("--engine", "qemu", "--memory", "256M", "tiny")
        _cerne("run", "-d", "--name", name, *options, *kind)
        names.append(name)
        _cerne("cp", str(work / "i"), f"{name}:/i")

    def measure(name: str) -> Way:
        def measured(server: str, back: bool) -> float:
            options = ["-R"] if back else []
            client = ("sh", _IPERF, "-J", "-t", str(_SECONDS), *options, "-c", server)
            return _received(_cerne("exec", name, "--", *client))

        return measured

    run("own")
    yield _Row("Cerne, a card of its own (passt, supervised)", measure("own"), None)
    for uplink in ("user", "nat"):
        _cerne("network", "create", uplink + "-net", "--uplink", uplink)
        for name in (uplink, uplink + "-2"):
            run(name, "--network", uplink + "-net")
        (card,) = json.loads(_cerne("inspect", "--json", uplink + "-2"))["addresses"]
        _cerne("exec", uplink + "-2", "--", "sh", _IPERF, "-s", "-D")
        yield _Row(f"Cerne, network {uplink}", measure(uplink), card["ipv4"])


def _by_hand(left: contextlib.ExitStack, work: Path) -> Iterator[_Row]:
    """The rows of plain QEMU."""
    plain = _Plain(left, *_image(work))
    _bridge(left)
    plain.start("SERVER=1 ADDRESS=10.98.0.3", _on_tap("t2"), _OTHER_MAC)
    on_tap = plain.client("ADDRESS=10.98.0.2", _on_tap("t1"))
    host = {_SERVER: "10.98.0.1"}
    yield _Row(
        "plain QEMU, a tap on a bridge without rules",
        lambda server, back: on_tap(host.get(server, server), back),
        "10.98.0.3",
    )
    with_passt = plain.client("ADDRESS=10.0.2.15 GATEWAY=10.0.2.2", _on_passt(left))
    yield _Row("plain QEMU, passt alone", with_passt, None)
    alone = plain.client("ADDRESS=10.0.2.15 GATEWAY=10.0.2.2", ("user,id=n", None))
    yield _Row("plain QEMU, its own user mode", alone, None)


def _image(work: Path) -> tuple[Path, Path]:
    """The kernel of `tiny`, and its initramfs with iperf3."""
    boot = Manager().ensure_image("tiny").boot
    assert boot is not None
    assert boot.initrd is not None
    initrd = work / "initrd-by-hand"
    with initrd.open("wb") as file:
        file.write(boot.initrd.read_bytes())
        archive = CpioWriter(file)
        archive.directory("i")
        for path in (work / "i").iterdir():
            archive.file(f"i/{path.name}", path.read_bytes(), 0o755)
        archive.file("bench", _BY_HAND.encode(), 0o755)
        archive.close()
    return boot.kernel, initrd


_Netdev = tuple[str, int | None]
"""QEMU's option, and the descriptor in it."""


class _Plain:
    """Starts plain QEMU with the same kernel, and ends it."""

    def __init__(self, left: contextlib.ExitStack, kernel: Path, initrd: Path) -> None:
        self._left = left
        self._boot = ("-kernel", str(kernel), "-initrd", str(initrd))

    def start(self, words: str, netdev: _Netdev, mac: str) -> subprocess.Popen[str]:
        """Start a guest, whose script has the words as its environment."""
        option, descriptor = netdev
        command = [
            *(str(require_program("qemu-system-x86_64")), "-M", "q35", "-cpu", "max", "-m", "256"),
            *("-accel", "tcg,thread=multi,tb-size=256", *self._boot, "-append"),
            f"console=ttyS0 quiet no_timer_check rdinit=/bench {words}",
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-serial", "stdio", "-netdev", option),
            *("-device", f"virtio-net-pci,netdev=n,mac={mac},romfile="),
        ]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            pass_fds=[] if descriptor is None else [descriptor],
        )
        self._left.callback(process.wait)
        self._left.callback(process.kill)
        if descriptor is not None:
            os.close(descriptor)
        _until(process, "READY")
        return process

    def client(self, words: str, netdev: _Netdev) -> Way:
        """Start a guest that connects to servers."""
        process = self.start(words, netdev, _MAC)

        def measured(server: str, back: bool) -> float:
            assert process.stdin is not None
            process.stdin.write(f"{server} {'-R' if back else ''}\n")
            return _received(_until(process, "DONE"))

        return measured


def _until(process: subprocess.Popen[str], word: str) -> str:
    """What a guest says before a word on a line of its own."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        if line.strip() == word:
            return said
        said += line
    raise SystemExit(f"a guest ended: {said}")


def _bridge(left: contextlib.ExitStack) -> None:
    """A namespace with a bridge, whose own address has a server."""
    _ip("netns", "add", _LAN)
    left.callback(_ip, "netns", "delete", _LAN)
    _ip("-n", _LAN, "link", "add", "br0", "type", "bridge")
    _ip("-n", _LAN, "address", "add", "10.98.0.1/24", "dev", "br0")
    _ip("-n", _LAN, "link", "set", "br0", "up")
    left.enter_context(_process("ip", "netns", "exec", _LAN, "iperf3", "-s"))


def _on_tap(name: str) -> _Netdev:
    descriptor = make_tap(f"bench-{name}")
    _ip("link", "set", f"bench-{name}", "netns", _LAN)
    _ip("-n", _LAN, "link", "set", f"bench-{name}", "master", "br0", "up")
    return f"tap,id=n,fd={descriptor}", descriptor


def _on_passt(left: contextlib.ExitStack) -> _Netdev:
    ours, theirs = socket.socketpair()
    command = passt_command(require_program("passt"), str(theirs.fileno()), "0", _MAC)
    # It becomes another user before it would write there. The guest's boot takes longer than this.
    at = command.index("--pid")
    del command[at : at + 2]
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stderr=subprocess.DEVNULL)
    left.callback(process.wait)
    left.callback(process.kill)
    theirs.close()
    descriptor = ours.detach()
    return f"socket,id=n,fd={descriptor}", descriptor


if __name__ == "__main__":
    main()

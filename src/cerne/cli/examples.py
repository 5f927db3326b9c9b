"""Examples of commands, which each command's help ends with.

They are loaded only when a help text is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Example = tuple[str, str]
"""What to type, and what it does; empty if the command says so itself."""

_EXAMPLES: Mapping[str, Sequence[Example]] = {
    "run": (
        ("cerne run --rm tiny -- uname -a", "a command; the machine is removed"),
        ("cerne run debian:12", "a shell in a new Debian"),
        ("cerne run -d --name web -p 8080:80 tiny", "a machine that stays, with a port"),
        ('cerne run --rm --mount "$PWD:/work" tiny -- ls /work', ""),
    ),
    "exec": (
        ("cerne exec web -- httpd -p 80 -h /www", ""),
        ("cerne exec -it web -- top", "on this terminal"),
        ("echo hello | cerne exec -i web -- cat", "with this stdin"),
    ),
    "shell": (("cerne shell web", ""),),
    "cp": (
        ("cerne cp ./site web:/www", "into the machine"),
        ("cerne cp web:/etc/passwd .", "out of it"),
    ),
    "console": (("cerne console web", ""),),
    "logs": (("cerne logs web --tail 20", ""), ("cerne logs web --follow", "until Ctrl-C")),
    "vsock": (
        ("cerne vsock web 1000", "to a program of the guest that listens"),
        ("cerne vsock --listen web 1000", "to one that connects to the host"),
    ),
    "create": (
        ("cerne create --name web --memory 1G --cpus 2 tiny", ""),
        ("cerne create --name db --disk 20G --data-disk 100G debian:12", ""),
    ),
    "start": (("cerne start web db", ""),),
    "stop": (("cerne stop web", ""), ("cerne stop --timeout 60s db", "its guest needs longer")),
    "kill": (("cerne kill web", ""),),
    "pause": (("cerne pause web", ""),),
    "resume": (("cerne resume web", ""),),
    "suspend": (("cerne suspend web", ""),),
    "wake": (("cerne wake web", ""),),
    "restart": (("cerne restart web", ""),),
    "rename": (("cerne rename web shop", "the machine web is shop now"),),
    "set": (
        ("cerne set web --memory 2G", "also while it runs"),
        ("cerne set web --cpu-limit 50%", "half of one CPU at most"),
        ("cerne set web --cpu-limit none", "no limit any more"),
        ("cerne set web --publish 8080:80", "in place of all that it had"),
    ),
    "rm": (("cerne rm web", ""), ("cerne rm --force web db", "also if they run")),
    "ls": (("cerne ls", ""), ("cerne ls --quiet | xargs -r cerne stop", "stop all machines")),
    "inspect": (("cerne inspect web", ""), ("cerne inspect web --json", "all values")),
    "stats": (("cerne stats", "all that run"), ("cerne stats web --json", "all counters")),
    "top": (
        ("cerne top", "all that run"),
        ("cerne top --interval 500ms web", "one, twice a second"),
        ("cerne top --once", "print the table once"),
    ),
    "events": (("cerne events web", ""), ("cerne events --follow --json", "for programs")),
    "wait": (("cerne wait web --timeout 90s", ""),),
    "fork": (
        ("cerne fork web", ""),
        ("cerne fork web --count 2 --name left", "two copies, left and web-1"),
    ),
    "doctor": (("cerne doctor", ""),),
    "capacity": (
        ("cerne capacity", ""),
        ("cerne capacity --overcommit memory=1.5", "promise half as much again"),
    ),
    "balance": (("cerne balance", "once"), ("cerne balance --json", "for a timer's log")),
    "version": (("cerne version", ""),),
    "disk attach": (
        ("cerne disk attach web 10G", "a new empty disk"),
        ("cerne disk attach web ./data.raw --read-only", "a file of this host"),
    ),
    "disk detach": (("cerne disk detach web data1", ""),),
    "disk ls": (("cerne disk ls web", ""),),
    "nic attach": (
        ("cerne nic attach web", "behind this host"),
        ("cerne nic attach web --network tap:tap0", "on a tap of this host"),
    ),
    "nic detach": (("cerne nic detach web 2", ""),),
    "nic ls": (("cerne nic ls web", ""),),
    "network create": (
        ("cerne network create lan", ""),
        ("cerne network create lan --ipv4 10.20.0.0/24", "with a subnet of your choice"),
        ("cerne network create inner --uplink none", "reaches nothing outside"),
    ),
    "network ls": (("cerne network ls", ""),),
    "network inspect": (("cerne network inspect lan", ""),),
    "network rm": (("cerne network rm lan", ""),),
    "network connect": (
        ("cerne network connect lan web", ""),
        ("cerne network connect lan web --address 10.20.0.5", ""),
    ),
    "network disconnect": (("cerne network disconnect lan web", ""),),
    "network set": (
        ("cerne network set lan web --rate 10M/2M", ""),
        ("cerne network set lan web --allow deb.debian.org:80", "nothing else outside"),
        ("cerne network set lan web --egress none", "nothing outside"),
    ),
    "network repair": (("cerne network repair lan", ""),),
    "publish add": (
        ("cerne publish add web 8080:80", "on 127.0.0.1"),
        ("cerne publish add web 0.0.0.0:8443:443", "for other hosts too"),
    ),
    "publish rm": (("cerne publish rm web 8080", ""),),
    "publish ls": (("cerne publish ls web", ""),),
    "snapshot create": (("cerne snapshot create web before", ""),),
    "snapshot ls": (("cerne snapshot ls", ""),),
    "snapshot restore": (
        ("cerne snapshot restore before", "its machine is as it was then"),
        ("cerne snapshot restore before --as web2", "another machine"),
    ),
    "snapshot rm": (("cerne snapshot rm before", ""),),
    "snapshot export": (("cerne snapshot export before ./before.cerne", ""),),
    "snapshot import": (("cerne snapshot import ./before.cerne --name again", ""),),
    "pool create": (("cerne pool create ci --image tiny --ready 3", ""),),
    "pool ls": (("cerne pool ls", ""),),
    "pool take": (("cerne pool take ci --name job-1", ""),),
    "pool fill": (("cerne pool fill ci", ""),),
    "pool rm": (("cerne pool rm ci", ""),),
    "operation ls": (("cerne operation ls", ""),),
    "operation inspect": (("cerne operation inspect 4be5f0a1c2d3", "an ID as listed"),),
    "operation cancel": (("cerne operation cancel 4be5f0a1c2d3", "an ID as listed"),),
    "image ls": (("cerne image ls", ""),),
    "image build": (("cerne image build debian:12", ""),),
    "image warm": (("cerne image warm tiny --memory 1G", "for machines with 1G"),),
    "image create": (("cerne image create gold --from web", "web is stopped"),),
    "image import": (
        ("cerne image import ./disk.qcow2 --name base", ""),
        ("cerne image import https://example.org/disk.img", ""),
    ),
    "image inspect": (("cerne image inspect tiny", ""),),
    "image rm": (("cerne image rm base", ""),),
    "image export": (("cerne image export debian:12 ./debian.qcow2", ""),),
    "kernel build": (("cerne kernel build", ""),),
    "kernel ls": (("cerne kernel ls", ""),),
}


def example_lines(command: str) -> list[str]:
    """The examples of a command, such as ``disk attach``, as lines for a shell."""
    examples = _EXAMPLES.get(command, ())
    width = max((len(words) for words, does in examples if does), default=0)
    return [f"{words.ljust(width)}  # {does}" if does else words for words, does in examples]

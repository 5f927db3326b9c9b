"""A home in which commands are killed at random moments, and what must hold after each.

A trial runs one command on machines in any state, and kills it after a random part of the time
that such a command takes. What is known of each machine is what was synced to its disk, and which
boot of its guest is in its memory; both are compared with what its guest says later.
"""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

from tests.e2e.conftest import Cerne, Engine
from tests.processes import commands, with_variable

from cerne.errors import CerneError, GuestTimeoutError
from cerne.guest import ExecResult
from cerne.manager import Home, Machine, Manager, State


@dataclass(frozen=True, slots=True)
class Kind:
    """What the machines are made of."""

    image: str
    memory: str

    @property
    def options(self) -> tuple[str, str]:
        """Of ``run``, ``create`` and ``image warm``."""
        return ("--memory", self.memory)


DEBIAN = Kind("debian:12-minimal", "256M")
"""With a disk that keeps what is written."""
TINY = Kind("tiny", "128M")
"""Boots in seconds where kernels are emulated too, and has no disk."""
_PATIENCE = 90.0
_MOST_MACHINES = 3
_MOST_SNAPSHOTS = 2
_SETTLED = {"defined", "running", "paused", "suspended", "stopped", "failed"}
_LATENESS = 3.0
_WHOLE = 0.3
"""The part of the commands that are not killed."""
_WITHOUT_MEMORY = {"defined", "stopped", "failed"}

_WRITE = 'echo "$1" >/root/word && sync'
_LOOK = (
    "read name </proc/sys/kernel/hostname; read file </etc/hostname;"
    " read address </sys/class/net/eth0/address; read boot </proc/sys/kernel/random/boot_id;"
    " word=none; [ ! -e /root/word ] || read word </root/word;"
    ' echo "$name $file $address $boot $word $(date +%s)"'
)

# After these alone a guest may be in another boot than it was in, or its machine without memory.
_REBOOTS = {"restart", "restore", "crowd"}
_ENDS = {"stop", "kill", "restart", "restore", "rm"}


@dataclass
class Known:
    """What is known of one machine: any of these words on its disk, and this boot in its memory."""

    words: set[str] = field(default_factory=lambda: {"none"})
    boot: str = ""


@dataclass(frozen=True)
class Trial:
    """One command, and what was done to it."""

    words: tuple[str, ...]
    after: float | None
    """Seconds after which it was to be killed; None if it was to end by itself."""
    status: int
    """Its exit status; negative where it was killed."""
    said: str

    @property
    def killed(self) -> bool:
        return self.status == -signal.SIGKILL

    def __str__(self) -> str:
        end = f"killed after {self.after or 0:.3f} s" if self.killed else f"status {self.status}"
        return f"cerne {' '.join(self.words)}: {end} {self.said.strip()[-300:]}"


class World:
    """Machines and snapshots in one home, and what is known of them."""

    def __init__(
        self,
        cerne: Cerne,
        engine: Engine,
        random: Random,
        files: Path,
        durations: dict[str, float],
        kind: Kind = DEBIAN,
    ) -> None:
        self.cerne = cerne
        self.engine = engine
        self.random = random
        self.files = files
        self.kind = kind
        self.durations = durations
        """How long each operation takes at present; what one round finds, the next one uses."""
        self.known: dict[str, Known] = {}
        self.kept: dict[str, set[str]] = {}
        self.trials: list[Trial] = []
        self._count = 0
        here = replace(Home.of_this_user(), data=cerne.home, runtime=cerne.home / "run")
        self._manager = Manager(here)

    def trial(self) -> Trial:
        """Run one command, killed or not, and check all that must hold after it."""
        states = self.states()
        operation, words = self._choose(states)
        name = words[1] if len(words) > 1 and words[1] in states else None
        if name is not None and states[name] == "running" and self.random.random() < 0.4:
            self._write(name)
        trial = self._run(operation, words)
        self.trials.append(trial)
        assert "Traceback" not in trial.said, trial
        assert trial.killed or trial.status == 0 or trial.said.strip(), trial
        self._expect(operation, words, trial)
        self._check(operation, trial, states)
        return trial

    def finish(self) -> None:
        """Remove everything, and see that nothing is left of it."""
        assert set(self.cerne.names()) == set(self.states())
        for name in self.states():
            self.cerne.ok("rm", "--force", name)
        for snapshot in self.snapshots():
            self.cerne.ok("snapshot", "rm", snapshot)
        self.known.clear()
        self.kept.clear()
        # A command sweeps before it makes anything.
        self.cerne.ok("create", "--name", "sweeps", *self.options, self.kind.image)
        self.cerne.ok("rm", "sweeps")
        deadline = time.monotonic() + _PATIENCE
        while left := [*self.cerne.leftovers(), *self._strays()]:
            assert time.monotonic() < deadline, left
            time.sleep(0.5)
        assert self._orphans() == []
        with sqlite3.connect(self.cerne.home / "store.sqlite") as store:
            assert store.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert store.execute("PRAGMA foreign_key_check").fetchall() == []

    @property
    def options(self) -> tuple[str, ...]:
        return ("--engine", self.engine.name, *self.kind.options)

    def _choose(self, states: dict[str, str]) -> tuple[str, tuple[str, ...]]:
        """One of the commands that make sense now, or that are refused in words."""
        choices: list[tuple[str, ...]] = []
        new = self._new("m")
        if len(states) < _MOST_MACHINES:
            choices += [("run", "-d", "--name", new, *self.options, self.kind.image)] * 2
            choices += [("create", "--name", new, *self.options, self.kind.image)]
            choices += [
                ("run", "--rm", "--name", new, *self.options, self.kind.image, "--", "true")
            ]
        for name, state in states.items():
            choices += self._about(name, state, new, room=len(states) < _MOST_MACHINES)
        for snapshot in self.snapshots():
            file = str(self.files / f"{self._new('e')}.cerne")
            choices += [("snapshot", "restore", snapshot), ("snapshot", "rm", snapshot)]
            choices += [("snapshot", "export", snapshot, file)]
            choices += [("snapshot", "restore", snapshot, "--as", new)] * 2
        choices += [("snapshot", "import", str(file)) for file in self.files.glob("*.cerne")][:1]
        if not states:
            return "run", choices[0]
        words = self.random.choice(choices)
        return words[1] if words[0] == "snapshot" else words[0], words

    def _about(self, name: str, state: str, new: str, *, room: bool) -> list[tuple[str, ...]]:
        match state:
            case "running":
                kept = len(self.snapshots()) < _MOST_SNAPSHOTS
                return [
                    ("stop", name),
                    ("kill", name),
                    ("pause", name),
                    ("suspend", name),
                    ("suspend", name),
                    ("rename", name, new),
                    ("set", name, "--balloon", self.random.choice(["128M", "256M"])),
                    ("exec", name, "--", "true"),
                    *([("snapshot", "create", name, self._new("s"))] * 2 if kept else []),
                    *([("fork", name, "--name", new)] * 2 if room else []),
                    *([] if self.engine.emulated else [("restart", name)]),
                    ("rm", "--force", name),
                ]
            case "paused":
                return [("resume", name), ("pause", name), ("suspend", name), ("stop", name)]
            case "suspended":
                return [("wake", name)] * 3 + [("start", name), ("rm", "--force", name)]
            case _ if state == "defined" or not self.engine.emulated:
                return [("start", name)] * 3 + [("rename", name, new), ("rm", name)]
            case _:
                return [("rename", name, new), ("rm", name)]

    def _new(self, letter: str) -> str:
        self._count += 1
        return f"{letter}{self._count}"

    def _run(self, operation: str, words: tuple[str, ...]) -> Trial:
        usual = self.durations.get(operation)
        after = None if usual is None else self._moment(usual)
        with tempfile.TemporaryFile() as output:
            begun = time.monotonic()
            process = subprocess.Popen(
                [self.cerne.program, *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self.cerne.environment,
            )
            try:
                status = process.wait(after)
                took = time.monotonic() - begun
                self.durations[operation] = took if usual is None else (usual + took) / 2
            except subprocess.TimeoutExpired:
                process.kill()
                status = process.wait()
            output.seek(0)
            said = output.read().decode(errors="replace")
        return Trial(words, after, status, said)

    def _moment(self, usual: float) -> float | None:
        """When a command is killed, if it is: others show what it takes, and what comes of it."""
        return None if self.random.random() < _WHOLE else self.random.uniform(0, 1.15 * usual)

    def _expect(self, operation: str, words: tuple[str, ...], trial: Trial) -> None:
        """What may be so after a command, whether or not it was whole."""
        name = words[1] if len(words) > 1 else ""
        match operation:
            case "rename":
                self.known[words[2]] = self.known.get(name, Known())
            case "create" if words[0] == "snapshot":
                self.kept[words[3]] = set(self.known[words[2]].words)
            case "fork":
                self.known[words[3]] = Known(set(self.known[name].words))
            case "restore" if "--as" in words:
                self.known[words[-1]] = Known(set(self.kept.get(words[2], {"none"})))
            case "restore":
                # The machine that it is of: which one, the store alone knows.
                for known in self.known.values():
                    known.words |= self.kept.get(words[2], set())
            case "import" if trial.status == 0:
                self.kept[trial.said.split()[-1]] = set().union(*self.kept.values(), {"none"})

    def check(self) -> None:
        """Check all that must hold after commands that nobody killed."""
        self._check("crowd", Trial(("crowd",), 0, 0, ""), {})

    def _check(self, operation: str, trial: Trial, before: dict[str, str]) -> None:
        states = self.states()
        for name in set(self.known) - set(states):
            del self.known[name]
        for name, state in states.items():
            known = self.known.setdefault(name, Known())
            if state in _WITHOUT_MEMORY:
                had_memory = before.get(name, "defined") not in _WITHOUT_MEMORY
                assert not had_memory or operation in _ENDS, f"{trial}\n{name} is {state}"
                known.boot = ""
            elif state == "running":
                self._look(name, known, operation, trial)
        records = [machine.record for machine in self._manager.machines()]
        directories = {path.name for path in (self.cerne.home / "machines").iterdir()}
        assert directories >= {record.id for record in records}, trial
        processes = [record.process for record in records if record.process is not None]
        assert len(set(processes)) == len(processes), trial

    def _look(self, name: str, known: Known, operation: str, trial: Trial) -> None:
        """Compare what a guest says with what is known of it."""
        machine = self._manager.get(name)
        try:
            before, done = self._run_in(machine, ["sh", "-c", _LOOK])
        except CerneError as error:
            # A guest that was asked to shut down does so, though the command was killed.
            if operation in _ENDS and machine.wait(_PATIENCE) in (State.STOPPED, State.FAILED):
                return
            raise AssertionError(f"{trial}\nexec in {name}: {error}") from error
        after = time.time()
        assert done.status == 0, f"{trial}\nexec in {name}: {done.stderr.decode()}"
        said, in_file, address, boot, word, now = done.stdout.decode().split()
        assert (said, in_file, address) == (name, name, machine.nics()[0]), trial
        late = before - int(now)
        assert -_LATENESS - (after - before) <= late <= _LATENESS, f"{trial}\n{late:.1f} s late"
        assert word in known.words, f"{trial}\n{name}: {word}, not {known.words}"
        if known.boot and operation not in _REBOOTS:
            assert boot == known.boot, f"{trial}\n{name} lost what was in its memory"
        known.boot, known.words = boot, {word}

    def _write(self, name: str) -> None:
        word = self._new("w")
        self._run_in(self._manager.get(name), ["sh", "-c", _WRITE, "sh", word])
        self.known[name].words = {word}

    def _run_in(self, machine: Machine, argv: list[str]) -> tuple[float, ExecResult]:
        """When a guest began to run a command, and what came of it.

        An emulated guest is asked again: beside other work its agent may not answer in time.
        """
        deadline = time.monotonic() + _PATIENCE * (3 if self.engine.emulated else 1)
        while True:
            begun = time.time()
            try:
                return begun, machine.exec(argv, timeout=_PATIENCE)
            except GuestTimeoutError:
                if time.monotonic() > deadline:
                    raise

    def states(self) -> dict[str, str]:
        """The machines' states, once none is on its way from one to another."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            records = [machine.record for machine in self._manager.machines()]
            states = {record.name: str(record.state) for record in records}
            if set(states.values()) <= _SETTLED:
                return states
            assert time.monotonic() < deadline, states
            time.sleep(0.2)

    def snapshots(self) -> list[str]:
        return [snapshot.name for snapshot in self._manager.snapshots()]

    def _strays(self) -> list[str]:
        """Processes that were started in this home."""
        of_home = with_variable("CERNE_HOME", str(self.cerne.home))
        found = commands()
        return [
            f"process {pid}: {b' '.join(found[pid]).decode()}" for pid in of_home if pid in found
        ]

    def _orphans(self) -> list[str]:
        """Files that neither a machine nor a snapshot has: there are none, but a template's."""
        home = self.cerne.home
        found = list((home / "snapshots").iterdir())
        found += [path for path in self.files.iterdir() if path.name.startswith(".")]
        found += (home / "images" / "work").glob("work-*")
        templates = [
            json.loads(path.read_text()) for path in (home / "templates").glob("*/template.json")
        ]
        named = json.dumps(templates)
        found += [path for path in (home / "layers").iterdir() if path.stem not in named]
        found += [path for path in home.iterdir() if path.name.startswith(".")]
        return [str(path) for path in found]

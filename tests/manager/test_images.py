"""Images and what is made of them: none is removed that something needs, whoever comes first."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from tests.manager.conftest import FakeEngine
from tests.waiting import PATIENCE

from cerne.client import Host
from cerne.errors import CerneError, ConflictError, InputError, NotFoundError
from cerne.images import Image, Progress
from cerne.manager import Home, Machine, Manager, State
from cerne.manager.store import Record
from cerne.spec.machine import MachineSpec, machine_spec


def _spec(name: str) -> MachineSpec:
    return machine_spec(name=name, image="blank", memory="64M")


def test_the_image_of_a_snapshot_is_kept(host: Host, machine: Machine) -> None:
    machine.start()
    snapshot = machine.snapshot("before")
    machine.remove(force=True)
    with pytest.raises(ConflictError, match="the snapshot before") as refused:
        host.remove_image("blank")
    assert "cerne snapshot rm before" in refused.value.hint
    assert snapshot.restore_as("again").state is State.RUNNING
    host.get("again").remove(force=True)
    snapshot.remove()
    host.remove_image("blank")


def test_the_image_of_a_suspended_machine_is_kept(
    host: Host, machine: Machine, asked: list[str]
) -> None:
    machine.start()
    machine.suspend()
    with pytest.raises(ConflictError, match="the machine web"):
        host.remove_image("blank")
    machine.wake()


@pytest.mark.parametrize(("parent", "made"), [("template", "a template"), ("image", "another")])
def test_the_image_of_what_is_being_made_is_kept_without_names_that_nobody_gave(
    manager: Manager, machine: Machine, parent: str, made: str
) -> None:
    store = manager._store
    helper = replace(machine.record, id="0" * 12, name="template-1", parent=parent)
    machine.remove()
    store.add(helper)
    with pytest.raises(ConflictError, match=f"{made}.* of it is being made") as refused:
        manager.remove_image("blank")
    assert "template-1" not in refused.value.message + refused.value.hint
    store.remove(helper)
    manager.remove_image("blank")


def test_the_image_of_a_pool_is_kept_by_its_name(manager: Manager, tmp_path: Path) -> None:
    manager.images.import_(str(tmp_path / "blank.raw"), "other")
    pool = manager.create_pool("ready", _spec("of-a-pool"), 0)
    with pytest.raises(ConflictError, match="the pool ready"):
        manager.remove_image("blank")
    manager.remove_image("other")
    pool.remove()
    manager.remove_image("blank")
    assert list(manager.images.list()) == []


def test_a_pool_whose_machines_could_not_boot_is_refused(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    blank = manager.images.get("blank")
    small = replace(blank, least_memory=_spec("of-a-pool").memory + 1)
    monkeypatch.setattr(manager.images, "get", lambda reference: small)
    with pytest.raises(InputError, match="does not boot in"):
        manager.create_pool("ready", _spec("of-a-pool"), 0)
    assert manager.pools() == []


def test_a_name_goes_where_the_image_has_another(
    manager: Manager, machine: Machine, tmp_path: Path
) -> None:
    digest = machine.record.digest
    manager.images.import_(str(tmp_path / "blank.raw"), "other")
    with pytest.raises(ConflictError, match="is the image"):
        manager.remove_image(digest)
    manager.remove_image("blank")
    assert manager.images.get(digest).digest == digest
    with pytest.raises(ConflictError, match="the machine web"):
        manager.remove_image("other")


def test_an_image_whose_files_are_gone_can_be_removed(manager: Manager) -> None:
    disk = manager.images.get("blank").disk
    assert disk is not None
    disk.path.unlink()
    assert list(manager.images.list()) == []
    manager.remove_image("blank")
    with pytest.raises(NotFoundError):
        manager.images.get("blank")


@pytest.mark.parametrize("late", [False, True])
def test_a_machine_whose_image_is_removed_meanwhile_is_not_made(
    manager: Manager, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    other = Manager(manager.home)
    if late:
        make = manager._make_disk

        def made(record: Record, spec: MachineSpec, image: Image) -> None:
            make(record, spec, image)
            other.remove_image("blank")

        monkeypatch.setattr(manager, "_make_disk", made)
    else:
        ensure = manager.ensure_image

        def ensured(name: str, progress: Progress | None) -> Image:
            image = ensure(name, progress)
            other.remove_image("blank")
            return image

        monkeypatch.setattr(manager, "ensure_image", ensured)
    with pytest.raises(ConflictError, match="image was removed"):
        manager.create(_spec("late"))
    assert manager.machines() == []
    assert list(manager.home.machines.iterdir()) == []


def test_machines_are_made_while_their_image_is_removed(
    manager: Manager, engine: FakeEngine
) -> None:
    refused: list[Exception] = []
    ready = threading.Barrier(5)

    def make(number: int) -> None:
        own = Manager(Home.of_this_user(), lambda _requested: engine)
        ready.wait(PATIENCE)
        try:
            own.create(_spec(f"m{number}"))
        except CerneError as error:
            refused.append(error)

    makers = [threading.Thread(target=make, args=(number,)) for number in range(4)]
    for maker in makers:
        maker.start()
    ready.wait(PATIENCE)
    with contextlib.suppress(ConflictError):
        manager.remove_image("blank")
    for maker in makers:
        maker.join()
    assert all(isinstance(error, ConflictError | NotFoundError) for error in refused), refused
    assert len(manager.machines()) + len(refused) == 4
    for machine in manager.machines():
        assert manager.images.get(machine.record.digest).disk is not None


def test_an_image_without_a_name_is_removed_when_nothing_is_made_of_it(
    manager: Manager, machine: Machine, tmp_path: Path
) -> None:
    former = manager.images.get("blank").digest
    (tmp_path / "other.raw").write_bytes(bytes(2 << 20))
    (tmp_path / "third.raw").write_bytes(bytes(3 << 20))
    manager.import_image(str(tmp_path / "other.raw"), "blank", replace=True)
    manager.import_image(str(tmp_path / "third.raw"), "third")
    manager.remove_image("third")
    assert manager.images.unnamed() == (former,)
    machine.remove()
    manager.import_image(str(tmp_path / "third.raw"), "third")
    manager.remove_image("third")
    assert manager.images.unnamed() == ()
    assert manager.images.get("blank").disk is not None

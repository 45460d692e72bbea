"""Checkpoints: written whole or not at all, read as values only, and refused where they are someone else's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from edgedi.transforms import edits
from edgedi.transforms.edits import plain_of, value_of
from edgedi.transforms.exact.simplify import Simplify
from edgedi.transforms.store import EVERY_S, NO_SLOT, Store, digest_of, digest_of_model
from tests.transforms.recover.toy import Clock


def test_what_was_saved_comes_back(tmp_path: Path):
    state = {"step": 3, "weights": {"a": torch.arange(3)}, "nested": [(1, 2.5), None, "text"]}
    Store(tmp_path / "new" / "folder").slot("x").save(state)
    found = Store(tmp_path / "new" / "folder").slot("x").load()
    assert found is not None
    assert torch.equal(found["weights"]["a"], torch.arange(3))
    assert (found["step"], found["nested"]) == (3, [(1, 2.5), None, "text"])


def test_nothing_was_saved(tmp_path: Path):
    assert Store(tmp_path).slot("x").load() is None


def test_a_store_of_nothing_keeps_nothing():
    NO_SLOT.save({"a": 1})
    assert (NO_SLOT.load(), NO_SLOT.due) == (None, False)
    Store(None).clear()


def test_a_kill_while_writing_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    slot = Store(tmp_path).slot("x")
    slot.save({"a": 1})

    def half(value: object, file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        slot.save({"a": 2})
    monkeypatch.undo()
    assert Store(tmp_path).slot("x").load() == {"a": 1}
    slot.save({"a": 3})
    assert Store(tmp_path).slot("x").load() == {"a": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


@pytest.mark.parametrize("damage", ["cut", "empty", "foreign", "plain"])
def test_a_damaged_file_is_refused_with_what_to_do(tmp_path: Path, damage: str):
    path = tmp_path / "x.pt"
    Store(tmp_path).slot("x").save({"a": torch.arange(1000)})
    if damage == "plain":
        torch.save({"a": 1}, path)
    else:
        content = path.read_bytes()
        path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "foreign": b"no zip file"}[damage])
    with pytest.raises(ValueError, match=r"x\.pt is (damaged|no checkpoint of compact).*; remove the folder to start"):
        Store(tmp_path)


def test_no_code_is_run(tmp_path: Path):
    path = tmp_path / "x.pt"
    torch.save({"kind": "edgedi compaction", "state": nn.Linear(2, 2)}, path)
    with pytest.raises(ValueError, match=r"x\.pt is damaged \(UnpicklingError\)"):
        Store(tmp_path)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"model": "B"}, "is of another model: names, shapes or values of its weights differ; remove the folder"),
        ({"settings": "B"}, "is of a run with other arguments; remove the folder to start anew, or give another"),
    ],
)
def test_someone_elses(tmp_path: Path, other: dict[str, str], message: str):
    Store(tmp_path, model="A", settings="A").slot("x").save({})
    with pytest.raises(ValueError, match=message):
        Store(tmp_path, **{"model": "A", "settings": "A", **other})


def test_a_file_where_the_folder_should_be(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"checkpoint='.*file' cannot be a folder"):
        Store(str(tmp_path / "file"))


def test_it_is_time_to_save_once_a_minute(tmp_path: Path):
    clock = Clock()
    slot = Store(tmp_path, clock=clock).slot("x")
    due = []
    for _ in range(3):
        clock.now_s += EVERY_S / 2
        due.append(slot.due)
        if slot.due:
            slot.save({})
    assert due == [False, True, False]
    assert EVERY_S < 60


def test_seconds_used_go_on_where_they_were_saved(tmp_path: Path):
    clock = Clock()
    store = Store(tmp_path, clock=clock)
    clock.now_s += 30
    store.slot("x").save({})
    clock.now_s += 1000  # lost with the kill
    again = Store(tmp_path, clock=clock)
    assert again.used_s() == 30
    clock.now_s += 5
    assert again.used_s() == 35


def test_parts_are_apart(tmp_path: Path):
    store = Store(tmp_path)
    one, other = store.within("1-prune"), store.within("2-recover")
    for part in (store, one, other):
        part.slot("x").save({})
    one.slot("y").save({})
    one.clear()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2-recover-x.pt", "x.pt"]


def test_digests_tell_models_apart():
    one, same, other = (nn.Linear(2, 2) for _ in range(3))
    same.load_state_dict(one.state_dict())
    assert digest_of_model(one) == digest_of_model(same)
    assert digest_of_model(one) != digest_of_model(other)
    assert digest_of_model(nn.Sequential(one)) != digest_of_model(one)
    assert digest_of_model(nn.BatchNorm1d(2).half()) != digest_of_model(nn.BatchNorm1d(2))


def test_digests_tell_values_apart():
    values = [1, 1.0, "1", (1,), [1], {"a": 1}, {"b": 1}, torch.tensor(1), torch.tensor(1.0), torch.tensor([1])]
    assert len({digest_of(value) for value in values}) == len(values)
    assert digest_of((nn.ReLU(), torch.relu)) == digest_of((nn.ReLU(), torch.relu))
    assert digest_of((nn.ReLU(), torch.relu)) != digest_of((nn.ReLU(), torch.tanh))
    assert digest_of({"a": torch.arange(3)}) == digest_of({"a": torch.arange(3)})


def test_edits_as_plain_values(monkeypatch: pytest.MonkeyPatch):
    assert plain_of((Simplify(),)) == ({"kind": "Simplify"},)
    assert value_of(({"kind": "Simplify"},)) == (Simplify(),)
    assert value_of(plain_of({"a": [1, (2, 3)], "b": None})) == {"a": [1, (2, 3)], "b": None}
    assert edits.EDITS["Simplify"] is Simplify

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import qpnuclei
from qpnuclei.errors import FormatError, NotFoundError, SaveError, UsageError
from qpnuclei.training.run_folder import (
    Progress,
    RunState,
    check_identity,
    git_state,
    load_state,
    open_run_folder,
    save_state,
    write_attention_grid,
    write_metrics,
)

IDENTITY = {"recipe": {"width": 4, "epochs": 2, "scales": (0.25, 0.5)}, "seed": 1, "images": "ab"}


def state() -> RunState:
    progress = Progress(epoch=1, batch=2, history=[{"epoch": 1.0}], sums={"loss": 0.5})
    return RunState(IDENTITY, progress, {"net": {"w": torch.arange(3.0)}})


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    save_state(tmp_path, state())
    loaded = load_state(tmp_path)
    assert loaded.progress == state().progress
    assert torch.equal(loaded.learner["net"]["w"], torch.arange(3.0))
    check_identity(loaded, IDENTITY)  # does not raise


@pytest.mark.parametrize("content", [b"", b"torn", b"\x80\x02}q\x00."])
def test_a_torn_state_is_a_format_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state.pt").write_bytes(content)
    with pytest.raises(FormatError, match=r"state\.pt is damaged, or not a state"):
        load_state(tmp_path)


def test_a_state_with_one_wrong_bit_is_not_used(tmp_path: Path) -> None:
    save_state(tmp_path, state())
    path = tmp_path / "state.pt"
    content = bytearray(path.read_bytes())
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            loaded = load_state(tmp_path)
        except FormatError:
            continue
        # The bit belongs to no content.
        assert torch.equal(loaded.learner["net"]["w"], torch.arange(3.0))
        assert loaded.progress == state().progress


def test_a_run_whose_model_is_gone_does_not_go_on(tmp_path: Path) -> None:
    kept = replace(state(), progress=Progress(epoch=1, best_epoch=1))
    save_state(tmp_path, kept)
    with pytest.raises(NotFoundError, match=r"model\.safetensors is missing"):
        load_state(tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert load_state(tmp_path).progress == kept.progress


def test_no_code_is_run_by_loading_a_state(tmp_path: Path) -> None:
    torch.save({"identity": print}, tmp_path / "state.pt")
    with pytest.raises(FormatError):
        load_state(tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 2}, "seed was 1 and is now 2"),
        ({"images": "cd"}, "images was 'ab'"),
        ({"recipe": {"width": 8, "epochs": 2, "scales": [0.25, 0.5]}}, r"recipe\.width was 4"),
    ],
)
def test_another_run_is_not_gone_on_with(change: dict[str, object], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        check_identity(state(), IDENTITY | change)


def test_more_epochs_are_no_other_run() -> None:
    check_identity(state(), IDENTITY | {"recipe": {"width": 4, "epochs": 9, "scales": [0.25, 0.5]}})


def test_a_run_folder_is_new_or_resumed(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "run"
    with pytest.raises(NotFoundError, match="holds no run to resume"):
        open_run_folder(folder, resume=True)
    open_run_folder(folder, resume=False)
    (folder / "tiles-0123.parquet").touch()
    (folder / "pseudo-labels").mkdir()  # of a former version
    (folder / "tensorboard").mkdir()  # of a former version
    (folder / ".DS_Store").touch()
    (folder / ".qpnuclei-0badcafe-1-00000000-x.part").touch()  # from another computer
    open_run_folder(folder, resume=False)  # of a run that was ended before it had a state
    save_state(folder, state())
    open_run_folder(folder, resume=True)
    with pytest.raises(UsageError, match="holds a training run") as caught:
        open_run_folder(folder, resume=False)
    assert "--resume" in caught.value.hint


def test_a_folder_of_something_else_is_not_offered_to_resume(tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").touch()
    with pytest.raises(UsageError, match="is not empty") as caught:
        open_run_folder(tmp_path, resume=False)
    assert "--resume" not in caught.value.hint


def test_a_run_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SaveError, match="file/run"):
        open_run_folder(tmp_path / "file" / "run", resume=False)


def test_metrics_of_all_epochs_as_csv(tmp_path: Path) -> None:
    write_metrics(tmp_path, [{"epoch": 1.0, "loss": 2.0}, {"epoch": 2.0, "loss": 1.5, "dice": 0.5}])
    assert (tmp_path / "metrics.csv").read_text().splitlines() == [
        "epoch,loss,dice",
        "1.0,2.0,",
        "2.0,1.5,0.5",
    ]


def test_the_picture_has_images_above_and_attention_below(tmp_path: Path) -> None:
    rgb = torch.zeros(2, 3, 4, 5, dtype=torch.uint8)
    rgb[1, 0] = 200  # the second image is red
    attention = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 4, 5)
    write_attention_grid(tmp_path / "pictures" / "e.png", rgb, attention)
    picture = np.asarray(Image.open(tmp_path / "pictures" / "e.png"))
    assert picture.shape == (8, 10, 3)
    assert picture[0, 0].tolist() == [0, 0, 0]
    assert picture[0, 5].tolist() == [200, 0, 0]
    assert picture[4, 0].tolist() == [0, 0, 0]
    assert picture[4, 5].tolist() == [255, 255, 255]


def test_git_state_is_the_commit_of_the_sources() -> None:
    root = Path(qpnuclei.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        assert git_state() is None
        return
    head = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout
    found = git_state()
    assert found is not None
    # `git describe` names a tag instead, where there is one on the commit.
    assert head.startswith(found.removesuffix("-dirty").rpartition("-g")[2]) or "." in found

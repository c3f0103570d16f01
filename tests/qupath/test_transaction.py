import sys
import threading

import pytest

from qpnuclei.qupath.transaction import digest_of, digest_of_file, locked


@pytest.mark.skipif(sys.platform == "win32", reason="Windows locks no folders")
def test_only_one_holds_a_folder(tmp_path):
    events = []

    def second():
        with locked(tmp_path):
            events.append("second")

    other = threading.Thread(target=second)
    with locked(tmp_path):
        other.start()
        other.join(0.2)
        events.append("first")
    other.join()
    assert events == ["first", "second"]
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_locked_is_no_obstacle(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_):
        raise OSError("no locks on this drive")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path):
        (tmp_path / "file").write_bytes(b"saved")


def test_digests_of_bytes_and_of_files_agree(tmp_path):
    data = bytes(range(256)) * 9000
    (tmp_path / "file").write_bytes(data)
    assert digest_of_file(tmp_path / "file") == digest_of(data) != digest_of(b"")

from qpnuclei.qupath.transaction import digest_of, digest_of_file


def test_digests_of_bytes_and_of_files_agree(tmp_path):
    data = bytes(range(256)) * 9000
    (tmp_path / "file").write_bytes(data)
    assert digest_of_file(tmp_path / "file") == digest_of(data) != digest_of(b"")

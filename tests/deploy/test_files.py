"""Old files survive whatever goes wrong while a new one is written."""

import errno
import pathlib

import pytest

from tfcompress.deploy.files import (
    check_writable,
    gzip_bytes,
    replace_together,
    write_together,
    written_atomically,
)


def test_the_new_file_is_there_with_usual_permissions(tmp_path):
    path = tmp_path / "file"
    with written_atomically(path) as temporary:
        temporary.write_bytes(b"new")
    (tmp_path / "plain").touch()
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    "error", [ValueError("bad"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space")]
)
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(type(error)), written_atomically(path) as temporary:
        temporary.write_bytes(b"half of the n")
        raise error
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_said_of_the_file_that_was_to_be(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match=r"Cannot write .*file'.*Free some space") as info:
        with written_atomically(path) as temporary, open(temporary, "wb") as file:
            # As the device that is always full does, half of it written.
            file.write(b"half")
            with open("/dev/full", "wb", buffering=0) as full:
                full.write(b"rest")
    assert info.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="Cannot write"):
        with written_atomically(tmp_path / "none" / "file"):
            pass
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        check_writable(tmp_path / "none" / "file")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        with written_atomically(tmp_path):
            pass


def test_files_are_replaced_together_or_not_at_all(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in "abc":
        (source / name).write_text(f"new {name}")
    (tmp_path / "a").write_text("old a")
    (tmp_path / "old").write_text("linked")
    (tmp_path / "link").symlink_to("old")
    targets = [tmp_path / name for name in ("a", "new", "link")]
    moves = list(zip(sorted(source.iterdir()), targets, strict=True))

    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        replace_together([*moves, (source / "a", tmp_path / "folder")])
    assert (tmp_path / "a").read_text() == "old a"
    assert (tmp_path / "link").is_symlink()
    assert not (tmp_path / "new").exists()
    assert not list(source.iterdir())  # Nothing but what was moved.

    for name in "abc":
        (source / name).write_text(f"new {name}")
    replace_together(moves)
    assert [target.read_text() for target in targets] == ["new a", "new b", "new c"]
    assert (tmp_path / "old").read_text() == "linked"


def test_contents_are_written_together_or_not_at_all(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("old")
    contents = {tmp_path / "a": b"new", tmp_path / "deep/er/b": b"other"}
    write = pathlib.Path.write_bytes

    def full(path, data):
        if data == b"other":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    with pytest.raises(OSError, match="Free some space") as error:
        write_together(contents)
    assert error.value.errno == errno.ENOSPC
    assert (tmp_path / "a").read_text() == "old"
    monkeypatch.undo()
    write_together(contents)
    assert (tmp_path / "a").read_bytes() == b"new"
    assert (tmp_path / "deep/er/b").read_bytes() == b"other"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "deep"]
    with pytest.raises(IsADirectoryError):
        write_together({tmp_path / "a": b"newer", tmp_path / "deep": b""})
    assert (tmp_path / "a").read_bytes() == b"new"


def test_gzip_bytes_do_not_depend_on_the_time():
    assert gzip_bytes(b"a" * 1000) == gzip_bytes(b"a" * 1000) < 50

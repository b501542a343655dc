"""Writing files so that an old one survives whatever goes wrong."""

import contextlib
import errno
import gzip
import os
import pathlib
import shutil
import tempfile

# No space on the disk, quota used up, file larger than allowed.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def written_atomically(path):
    """Gives a temporary path beside `path`, which becomes `path` at the end.

    If the body raises, nothing is left behind and an old file stays as it was.

    Args:
        path: Where the file shall be.

    Yields:
        `pathlib.Path` to write to.

    Raises:
        OSError: If the folder does not exist or cannot be written, or the disk is full.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"Cannot write {os.fspath(path)!r}: it is a folder.")
    # Through a link, as `open` would write.
    path = pathlib.Path(os.path.realpath(path))
    try:
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name[:100]}.", suffix=".part"
        )
    except OSError as err:
        raise type(err)(
            f"Cannot write {os.fspath(path)!r}: {err.strerror}. The folder must exist "
            "and be writable."
        ) from err
    os.close(handle)
    temporary = pathlib.Path(name)
    try:
        with _full_disk_told(path):
            yield temporary
            # mkstemp makes files for the owner only; give what `open` would have given.
            temporary.chmod(0o666 & ~_umask())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _full_disk_told(path):
    """Says of a full disk which file it hit, and that nothing is lost."""
    try:
        yield
    except OSError as err:
        if err.errno not in _FULL:
            raise
        raise OSError(
            err.errno,
            f"Cannot write {os.fspath(path)!r}: {err.strerror}. Free some space, or "
            "write elsewhere; what was there before is as it was",
        ) from err


def replace_together(moves):
    """Moves files to their places: all of them, or none.

    Each new file takes its place in one step; if one cannot, what the earlier ones
    replaced is put back.

    Args:
        moves: Pairs `(source, target)` of paths, each in one file system.

    Raises:
        OSError: If a target cannot be replaced.
    """
    undo = []
    with contextlib.ExitStack() as stack:
        try:
            for source, target in moves:
                old = None
                if os.path.lexists(target):
                    # Beside it: putting back must not need another file system.
                    folder = stack.enter_context(_folder_beside(target))
                    old = folder / "old"
                    shutil.copy2(target, old, follow_symlinks=False)
                # Before the step, since an interrupt may come right behind it.
                undo.append((old, target))
                os.replace(source, target)
        except BaseException:
            for old, target in reversed(undo):
                # One that cannot be put back keeps no other from it.
                with contextlib.suppress(OSError):
                    if old is not None:
                        os.replace(old, target)
                    else:
                        pathlib.Path(target).unlink(missing_ok=True)
            raise


def write_together(contents):
    """Writes files so that all of them are new, or all as they were.

    Args:
        contents: Dict from path to bytes. Folders are made.

    Raises:
        OSError: If a file cannot be written, or the disk is full.
    """
    paths = {pathlib.Path(os.path.realpath(p)): data for p, data in contents.items()}
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        check_writable(path)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_full_disk_told(next(iter(paths))))
        moves = []
        for path, data in paths.items():
            staged = stack.enter_context(_folder_beside(path)) / "new"
            staged.write_bytes(data)
            moves.append((staged, path))
        replace_together(moves)


@contextlib.contextmanager
def _folder_beside(path):
    with tempfile.TemporaryDirectory(
        dir=pathlib.Path(path).parent, prefix=".tfcompress."
    ) as folder:
        yield pathlib.Path(folder)


def save_keras(model, path):
    """Saves a model as `.keras`; an old file stays until the new one is whole."""
    # Keras insists on the suffix, which the temporary file does not have.
    with tempfile.TemporaryDirectory() as folder:
        saved = pathlib.Path(folder, "model.keras")
        model.save(saved)
        with written_atomically(path) as temporary:
            shutil.copyfile(saved, temporary)


def check_writable(path):
    """Raises `OSError` if `path` cannot be written, before the work is done."""
    path = pathlib.Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"Cannot write {os.fspath(path)!r}: it is a folder.")
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"Cannot write {os.fspath(path)!r}: there is no folder "
            f"{os.fspath(path.parent)!r}."
        )
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(
            f"Cannot write {os.fspath(path)!r}: the folder is read-only."
        )


def gzip_bytes(content):
    """Number of bytes that `content` takes when compressed with gzip -9."""
    return len(gzip.compress(content, compresslevel=9, mtime=0))


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask

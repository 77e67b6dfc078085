"""Files of a local folder: found by name, and refused before they are opened where a name or a link leads astray."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath

from bombus.policies.errors import CheckpointError, Problem

# A file that several repositories of the Hugging Face cache have: `blobs` beside their folders, 2 letters, its hash.
_SHARED_BLOB = re.compile(r"[0-9a-f]{2}/[0-9a-f]{64}")


def is_inside(name: str) -> bool:
    """Whether a name with `/` between its parts stays in the folder that it is taken from, on every system."""
    if not name or not name.isprintable() or "\\" in name or PureWindowsPath(name).drive:
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and path != PurePosixPath() and ".." not in path.parts


def find_file(folder: Path, name: str) -> Path | None:
    """The path of a file of a folder, None when it is not there.

    Raises CheckpointError for a link out of the folder or to nothing, and for what is no regular file: it is never
    opened, so a FIFO does not block. The folder may be a link itself, and the links of a snapshot in the Hugging Face
    cache into the cache's `blobs` are followed.
    """
    path = folder / name
    try:
        path.lstat()
        target = path.resolve(strict=True)
        is_file = stat.S_ISREG(target.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            message = f"is a link to {os.path.realpath(path)}, which is not there"
            raise _error(path, message, "download the file again") from None
        return None
    except (OSError, RuntimeError) as error:  # Python 3.13 has an OSError for links in a circle
        reason = getattr(error, "strerror", None) or "its links lead in a circle"
        raise _error(path, f"cannot be opened: {reason}", None) from None
    root = folder.resolve()
    if not target.is_relative_to(root) and not _is_blob(target, root):
        remedy = f"put the file in the place of the link, or load its own folder, {target.parent}"
        raise _error(path, f"is a link out of the folder, to {target}, and was not opened", remedy)
    if not is_file:
        raise _error(path, "is not a regular file", "replace it by the real file")
    return path


def _error(path: Path, message: str, remedy: str | None) -> CheckpointError:
    return CheckpointError(Problem(subject="file", message=message, remedy=remedy), where=str(path))


def _is_blob(target: Path, root: Path) -> bool:
    """Whether the folder is in a snapshot of the Hugging Face cache, and the target among that repository's blobs."""
    for folder in (root, *root.parents):
        if folder.parent.name == "snapshots":
            repository = folder.parents[1]
            blobs = (repository / "blobs").resolve()
            shared = (repository.parent / "blobs").resolve()
            return target.parent == blobs or (
                repository.name.startswith("models--")
                and target.is_relative_to(shared)
                and bool(_SHARED_BLOB.fullmatch(target.relative_to(shared).as_posix()))
            )
    return False

"""Sequences in ``.tar`` shards, such as those of WebDataset, which are indexed once.

The index holds where each member begins and ends. A slice is then read at its place, like one of a
file of its own, so that a member is not read from its beginning.
"""

import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from fastlstm.data.formats import HEAD_BYTES, format_of_bytes
from fastlstm.data.sequence_files import BytesSequence, NumpySequence


def open_tar(path: Path, is_wanted: Callable[[str], bool]) -> list[BytesSequence | NumpySequence]:
    """Return a sequence for each member, in the order of their names.

    Args:
        path: of an archive that is not compressed.
        is_wanted: whether a member of this name is read.

    Raises:
        ValueError: the archive is damaged or cut short; a member is not a file, or in a format that
            cannot be read from an archive.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        # without a buffer: the headers of large members lie far from one another
        with tarfile.open(fileobj=file, mode="r:") as archive:
            # as tar extracts them: of two members of one name the last one counts
            members = {member.name: member for member in archive if not member.isdir()}
            end = archive.offset
        file.seek(end)
        # tarfile takes a damaged header for the end
        if file.read(tarfile.BLOCKSIZE).strip(b"\0") or file.tell() != end + tarfile.BLOCKSIZE:
            raise ValueError(f"expected a header or the end of the archive at byte {end}")
        found: list[BytesSequence | NumpySequence] = []
        for name in sorted(filter(is_wanted, members)):
            member = members[name]
            if not member.isreg() or member.issparse():
                raise ValueError(f"member {name}: expected a file, got a link or a sparse file")
            start, stop = member.offset_data, member.offset_data + member.size
            file.seek(start)
            head = file.read(min(HEAD_BYTES, member.size))
            kind = format_of_bytes(head, PurePosixPath(name).suffix, member.size)
            if kind not in ("NumPy", None):
                raise ValueError(
                    f"member {name}: expected .npy or plain bytes, got {kind}; leave it out with"
                    " members, such as members='*.npy'"
                )
            place = (path, start, stop, name)
            try:
                found.append(BytesSequence(*place) if kind is None else NumpySequence(*place))
            except ValueError as error:
                raise ValueError(f"member {name}: {error}") from error
    return found

"""Writers of the .tar shards and zarr stores that the tests read."""

import io
import tarfile

import numpy as np


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def write_tar(path, members, **options):
    with tarfile.open(path, "w", **options) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            archive.addfile(member, io.BytesIO(content))


def write_zarr(path, array, **options):
    import zarr

    options = {"chunks": (6, *array.shape[1:]), **options}
    store = zarr.create_array(path, shape=array.shape, dtype=array.dtype, **options)
    store[:] = array

"""The clips and classes of UCF-101 and HMDB-51, in the official splits."""

import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from fastlstm.data.splits import Split

ActionSet = Literal["ucf101", "hmdb51"]

_FOLDS = (1, 2, 3)
_VAL = 10  # of the groups of official training clips, 1 in 10 is val


class Clip(NamedTuple):
    """A video file and its class.

    Attributes:
        path: path of the video file.
        label: index of the class.
        group: name of the recording; clips of one recording have the same.

    Example:
        >>> Clip(Path("v_Archery_g08_c01.avi"), 2, "v_Archery_g08").label
        2
    """

    path: Path
    label: int
    group: str


class ActionClips(NamedTuple):
    """The clips of one split.

    Attributes:
        clips: the clips, in the order of the official lists.
        classes: names of all classes, in the order of their labels.

    Example:
        >>> clip = Clip(Path("v_Archery_g08_c01.avi"), 1, "v_Archery_g08")
        >>> found = ActionClips([clip], ("Applauding", "Archery"))
        >>> found.classes[found.clips[0].label]
        'Archery'
    """

    clips: list[Clip]
    classes: tuple[str, ...]


def load_actions(
    dataset: ActionSet, folder: str | Path, split: Split = "train", fold: int = 1
) -> ActionClips:
    """List the clips of UCF-101 (Soomro et al., 2012) or HMDB-51 (Kuehne et al., 2011).

    Both are read in their official layout. UCF-101: ``ucfTrainTestlist`` with ``classInd.txt``,
    ``trainlist01.txt`` and ``testlist01.txt``, and a folder of ``.avi`` files for each class in
    ``folder`` or in ``folder/UCF-101``. HMDB-51: ``testTrainMulti_7030_splits`` with
    ``<class>_test_split1.txt``, which marks clips by 1 (training), 2 (test) or 0 (neither), and a
    folder for each class in ``folder`` or in ``folder/hmdb51_org``.

    The test split is the official one. The official training clips are divided by recording: 1
    recording in 10, chosen by a checksum of its name, is val, the others are train.

    Args:
        dataset: "ucf101" or "hmdb51".
        folder: folder into which the archives were unpacked.
        split: "train", "val" or "test". Default: "train".
        fold: which of the three official splits, 1, 2 or 3. Default: 1.

    Raises:
        FileNotFoundError: the folder, a list, or a clip named in a list is absent.
        ValueError: an unknown data set, split or fold, a malformed list, or an empty split.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "ucfTrainTestlist").mkdir()
        >>> (folder / "UCF-101" / "Archery").mkdir(parents=True)
        >>> (folder / "UCF-101" / "Archery" / "v_Archery_g01_c01.avi").touch()
        >>> lists = {"classInd": "1 Archery", "testlist01": "Archery/v_Archery_g01_c01.avi"}
        >>> for name, line in lists.items():
        ...     size = (folder / "ucfTrainTestlist" / f"{name}.txt").write_text(line)
        >>> clips, classes = load_actions("ucf101", folder, "test")
        >>> clips[0].label, clips[0].group, classes
        (0, 'v_Archery_g01', ('Archery',))
    """
    if dataset not in get_args(ActionSet):
        raise ValueError(f"dataset: expected one of {get_args(ActionSet)}, got {dataset!r}")
    if split not in get_args(Split):
        raise ValueError(f"split: expected one of {get_args(Split)}, got {split!r}")
    if fold not in _FOLDS:
        raise ValueError(f"fold: expected one of {_FOLDS}, got {fold}")
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"folder: expected a folder, {root} is absent")
    read = _read_ucf101 if dataset == "ucf101" else _read_hmdb51
    clips, classes = read(root, split == "test", fold)
    if split != "test":
        clips = [clip for clip in clips if _is_val(clip.group) == (split == "val")]
    if not clips:
        raise ValueError(f"folder: expected clips of the {split} split, {root} lists none")
    absent = [clip.path for clip in clips if not clip.path.is_file()]
    if absent:
        raise FileNotFoundError(
            f"folder: expected the {len(clips)} {split} clips that the lists name,"
            f" {len(absent)} are absent, the first of them {absent[0]}"
        )
    return ActionClips(clips, classes)


def _is_val(group: str) -> bool:
    return zlib.crc32(group.encode()) % _VAL == 0


def _read_ucf101(root: Path, test: bool, fold: int) -> ActionClips:
    lists = root / "ucfTrainTestlist"
    numbered = [_fields(lists / "classInd.txt", line, 2) for line in _lines(lists / "classInd.txt")]
    classes = tuple(name for _, name in sorted(numbered, key=lambda pair: int(pair[0])))
    videos = _class_folders(root, "UCF-101", classes)
    listed = lists / f"{'test' if test else 'train'}list{fold:02}.txt"
    clips = []
    for line in _lines(listed):
        # "Class/v_Class_g08_c01.avi 1"; the number is the class, which test lists leave out
        name, _, file = line.split(" ")[0].partition("/")
        if name not in classes or not file:
            raise ValueError(f"{listed}: expected lines of <class>/<clip>, got {line!r}")
        group = file.rpartition("_c")[0] or file
        clips.append(Clip(videos / name / file, classes.index(name), group))
    return ActionClips(clips, classes)


def _read_hmdb51(root: Path, test: bool, fold: int) -> ActionClips:
    lists, ending = root / "testTrainMulti_7030_splits", f"_test_split{fold}.txt"
    files = sorted(lists.glob(f"*{ending}"))
    if not files:
        raise FileNotFoundError(f"folder: expected lists <class>{ending}, {lists} has none")
    classes = tuple(file.name.removesuffix(ending) for file in files)
    videos = _class_folders(root, "hmdb51_org", classes)
    clips = []
    for label, (name, listed) in enumerate(zip(classes, files, strict=True)):
        for line in _lines(listed):
            file, mark = _fields(listed, line, 2)
            if mark not in ("0", "1", "2"):
                raise ValueError(f"{listed}: expected clips marked 0, 1 or 2, got {line!r}")
            if mark == ("2" if test else "1"):
                group = file.rpartition(f"_{name}_")[0] or file  # "<recording>_<class>_f_cm_..."
                clips.append(Clip(videos / name / file, label, group))
    return ActionClips(clips, classes)


def _class_folders(root: Path, below: str, classes: Iterable[str]) -> Path:
    """Return the folder that holds the folders of the classes."""
    for folder in (root / below, root):
        if any((folder / name).is_dir() for name in classes):
            return folder
    raise FileNotFoundError(
        f"folder: expected a folder of clips for each class in {root / below} or {root}, found none"
    )


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"folder: expected an official list, {path} is absent")
    try:
        text = path.read_text()
    except UnicodeDecodeError as error:
        raise ValueError(f"folder: expected a list in text, got {path}: {error}") from error
    return [line for line in map(str.strip, text.splitlines()) if line]


def _fields(path: Path, line: str, count: int) -> list[str]:
    fields = line.rsplit(maxsplit=count - 1)
    if len(fields) != count:
        raise ValueError(f"{path}: expected lines of {count} words, got {line!r}")
    return fields

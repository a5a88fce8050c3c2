"""Small data sets in the layouts of UCF-101 and HMDB-51, and a backbone for their frames."""

import torch
from clips import noise, write_clip
from torch import nn

from fastlstm.data import FrameFeatures

GROUPS = 24  # recordings of each class, in 3 of which official test clips are
UCF = ("ApplyLipstick", "HandstandPushups")
HMDB = ("brush_hair", "wave")


def write_action_videos(root):
    """Write both data sets, two classes each, with clips of 20 frames but for one of 5."""
    clip = write_clip(root / "clip.avi", noise(20)).read_bytes()

    ucf, lists = root / "ucf", root / "ucf" / "ucfTrainTestlist"
    lists.mkdir(parents=True)
    (lists / "classInd.txt").write_text("".join(f"{n + 1} {c}\r\n" for n, c in enumerate(UCF)))
    train, test = [], []
    for number, name in enumerate(UCF):
        (ucf / "UCF-101" / name).mkdir(parents=True)
        for group in range(1, GROUPS + 1):
            for part in (1, 2):
                file = f"{name}/v_{name}_g{group:02}_c{part:02}.avi"
                (ucf / "UCF-101" / file).write_bytes(clip)
                if group <= 3:
                    test.append(f"{file}\n")
                else:
                    train.append(f"{file} {number + 1}\n")
    (lists / "trainlist01.txt").write_text("".join(train))
    (lists / "testlist01.txt").write_text("".join(test))
    write_clip(ucf / "UCF-101" / UCF[0] / f"v_{UCF[0]}_g01_c01.avi", noise(5))

    hmdb, lists = root / "hmdb", root / "hmdb" / "testTrainMulti_7030_splits"
    lists.mkdir(parents=True)
    for name in HMDB:
        (hmdb / name).mkdir()
        lines = []
        for group in range(GROUPS):
            file = f"Film_{group}_{name}_u_nm_np1_ba_goo_0.avi"
            (hmdb / name / file).write_bytes(clip)
            lines.append(f"{file} {2 if group < 3 else 1} \n")
        lines.append("left_out.avi 0 \n")
        (lists / f"{name}_test_split1.txt").write_text("".join(lines))
    return root


class Means(nn.Module):
    """A backbone: the mean of each colour, weighted, and one number that is always 1."""

    def __init__(self, weight=2.0):
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), weight))
        self.dropout = nn.Dropout(0.5)
        self.seen = 0

    def forward(self, images):
        self.seen += len(images)
        means = self.dropout(images.mean((2, 3))) * self.weight
        return torch.cat((means, torch.ones(len(images), 1)), 1)


PLAIN = {"size": 16, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "batch_size": 8}


def frame_features(folder, weight=2.0, **options):
    return FrameFeatures(Means(weight), **{**PLAIN, "cache": folder, **options})

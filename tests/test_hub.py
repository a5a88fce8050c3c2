"""Models in folders and on the Hugging Face Hub, whose client is imported late."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from fastlstm import CompositeLSTM, LSTMClassifier, VideoLSTM


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A stand-in for huggingface_hub with one repository, and what it was asked for."""
    asked, repository = [], tmp_path / "repository"
    repository.mkdir()

    class HfApi:
        def create_repo(self, repo_id, *, private, exist_ok):
            asked.append(("create", repo_id, private, exist_ok))
            return SimpleNamespace(repo_id=f"me/{repo_id.rpartition('/')[2]}")

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            asked.append(("upload", repo_id, commit_message))
            for file in Path(folder_path).iterdir():
                (repository / file.name).write_bytes(file.read_bytes())
            return SimpleNamespace(commit_url=f"https://huggingface.co/{repo_id}/commit/1")

    def hf_hub_download(repo_id, filename, *, revision):
        asked.append(("download", repo_id, filename, revision))
        return str(repository / filename)

    module = ModuleType("huggingface_hub")
    module.HfApi, module.hf_hub_download = HfApi, hf_hub_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return asked


@pytest.mark.parametrize("model", [CompositeLSTM(5, 4), LSTMClassifier(5, 4, 3, dropout=0.5)])
def test_a_folder_needs_no_client(tmp_path, monkeypatch, model):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    model.save_pretrained(tmp_path / "new" / "folder")
    assert [p.name for p in (tmp_path / "new" / "folder").iterdir()] == ["model.safetensors"]
    loaded = type(model).from_pretrained(tmp_path / "new" / "folder")
    assert loaded.config == model.config
    assert all(map(torch.equal, loaded.parameters(), model.parameters()))


def test_a_model_goes_to_a_repository_and_comes_back(hub):
    model = CompositeLSTM(5, 4)
    assert model.push_to_hub("video", private=True) == "https://huggingface.co/me/video/commit/1"
    loaded = VideoLSTM.from_pretrained("me/video", revision="v1")
    assert type(loaded) is CompositeLSTM
    assert all(map(torch.equal, loaded.parameters(), model.parameters()))
    assert hub == [
        ("create", "video", True, True),
        ("upload", "me/video", "Upload CompositeLSTM"),
        ("download", "me/video", "model.safetensors", "v1"),
    ]
    with pytest.raises(ValueError, match="name_or_folder: expected a LSTMClassifier, got a Compos"):
        LSTMClassifier.from_pretrained("me/video")


def test_a_folder_of_the_name_comes_before_a_repository(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    CompositeLSTM(5, 4).save_pretrained("me/video")
    VideoLSTM.from_pretrained("me/video")
    assert hub == []


def test_what_is_neither_a_folder_nor_a_name_is_told(hub, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"name_or_folder: .* folder with model\.safetens"):
        VideoLSTM.from_pretrained(tmp_path)
    for name in (tmp_path / "absent", "./a", "runs/a/b", "~/a", "a b"):
        with pytest.raises(FileNotFoundError, match="a folder that exists, or USER/MODEL on the"):
            VideoLSTM.from_pretrained(name)
    assert hub == []


def test_without_the_client_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (CompositeLSTM(5, 4).push_to_hub, VideoLSTM.from_pretrained):
        with pytest.raises(ImportError, match=r"pip install 'fastlstm\[hub\]'"):
            call("me/video")


def test_import_fastlstm_does_not_import_the_client():
    program = "import sys, fastlstm; assert 'huggingface_hub' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)

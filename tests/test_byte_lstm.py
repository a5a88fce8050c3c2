"""The language model of bytes: its options, layouts and samples."""

import pytest
import torch

from fastlstm import ByteLSTM, VideoLSTM

OPTIONS = [{}, {"bias": False}, {"proj_size": 3}, {"learn_initial_state": True}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_gives_nats_and_gradients(options):
    torch.manual_seed(0)
    model = ByteLSTM(6, 2, 4, **options)
    text = torch.randint(256, (8, 3))
    nats, (h, c) = model.losses(text[:-1], text[1:])
    assert nats.shape == (7, 3)
    assert h.shape == (2, 3, options.get("proj_size", 6)) and c.shape == (2, 3, 6)
    logits, _ = model(text[:-1])
    expected = -logits.log_softmax(-1).gather(2, text[1:, :, None])[..., 0]
    torch.testing.assert_close(nats, expected)
    nats.mean().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_batch_first_only_changes_the_layout():
    models = []
    for batch_first in (False, True):
        torch.manual_seed(0)
        models.append(ByteLSTM(6, embedding_size=4, batch_first=batch_first))
    text, reset = torch.randint(256, (8, 3)), torch.rand(8, 3) < 0.3
    expected, state = models[0](text, reset=reset)
    found, other = models[1](text.t(), reset=reset.t())
    torch.testing.assert_close(found.transpose(0, 1), expected)
    torch.testing.assert_close(other, state)
    assert models[0].sample(b"abc", 9) == models[1].sample(b"abc", 9)


def test_a_bidirectional_model_is_refused():
    with pytest.raises(ValueError, match="bidirectional: expected False"):
        ByteLSTM(6, bidirectional=True)
    assert ByteLSTM(6, bidirectional=False).config == ByteLSTM(6).config


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_saved_and_loaded_it_is_the_same(tmp_path, options):
    model = ByteLSTM(6, 2, 4, 0.1, dtype=torch.float64, **options)
    model.save(tmp_path / "model.safetensors")
    found = ByteLSTM.load(tmp_path / "model.safetensors")
    assert found.config == model.config
    for name, value in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
    with pytest.raises(ValueError, match="path: expected a VideoLSTM, got a ByteLSTM"):
        VideoLSTM.load(tmp_path / "model.safetensors")

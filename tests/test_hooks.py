"""Forward hooks on modules see each of their calls, also those that other methods make."""

import pytest
import torch

import fastlstm

FRAMES = torch.rand(4, 2, 16)
MODELS = [fastlstm.CompositeLSTM, fastlstm.LSTMFuturePredictor, fastlstm.LSTMAutoencoder]


@pytest.mark.parametrize("kind", MODELS)
def test_the_loss_of_a_model_calls_the_model_and_its_encoder(kind):
    model, seen = kind(16, 8), []
    for module in (model, model.encoder):
        module.register_forward_hook(lambda module, args, output: seen.append(type(module)))
    model.loss(FRAMES, FRAMES)
    assert seen == [type(model.encoder), kind]


@pytest.mark.parametrize("module", [fastlstm.LSTM(16, 8), fastlstm.LSTMCell(16, 8)])
def test_a_hook_may_replace_the_output(module):
    module.register_forward_hook(lambda module, args, output: "replaced")
    x = FRAMES if isinstance(module, fastlstm.LSTM) else FRAMES[0]
    assert module(x) == "replaced"

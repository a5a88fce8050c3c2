"""``fastlstm.Stream``: every wrong argument is refused in one sentence."""

import copy
import pickle

import pytest
import torch

import fastlstm


def make(I, H, **options):
    torch.manual_seed(0)
    return fastlstm.LSTM(I, H, **options).eval()


@pytest.mark.parametrize(
    ("error", "match", "call"),
    [
        (ValueError, "batch_size: expected at least 1, got 0", lambda m: m.stream(0)),
        (TypeError, "batch_size: expected an int, got str", lambda m: m.stream("1")),
        (ValueError, "dtype_of_weights: expected float32, ", lambda m: m.stream(1, "int4")),
        (ValueError, "float32, bfloat16 or float16 .* got float64", lambda m: m.double().stream(1)),
        (ValueError, "parameters on the cpu, got .* meta", lambda m: m.to("meta").stream(1)),
        (ValueError, "isa: expected", lambda m: fastlstm.Stream(m, 1, isa="z80")),
        (TypeError, "lstm: expected a fastlstm.LSTM", lambda m: fastlstm.Stream(m.to_torch(), 1)),
        (ValueError, "batch_size: expected 1 to", lambda m: m.stream(2**40 // 10**5)),
    ],
)
def test_errors_of_creation(error, match, call):
    with pytest.raises(error, match=match):
        call(make(4, 6))


def test_a_bidirectional_module_is_refused():
    with pytest.raises(ValueError, match=r"lstm: expected bidirectional=False.* got True"):
        make(4, 6, bidirectional=True).stream(1)


@pytest.mark.parametrize(
    ("error", "match", "call"),
    [
        (TypeError, r"x: expected a float32 tensor \(2, 4\) .* got list", lambda s: s.step([1.0])),
        (ValueError, r"got float32 \(3, 4\) on cpu", lambda s: s.step(torch.zeros(3, 4))),
        (ValueError, r"got float32 \(1, 2, 4\)", lambda s: s.step(torch.zeros(1, 2, 4))),
        (ValueError, r"got float64 \(2, 4\)", lambda s: s.step(torch.zeros(2, 4).double())),
        (ValueError, "on meta", lambda s: s.step(torch.zeros(2, 4, device="meta"))),
        (ValueError, r"\(T, 2, 4\) .* \(2, 4\)", lambda s: s.run(torch.zeros(2, 4))),
        (ValueError, "got float32", lambda s: s.step(torch.zeros(2, 4).to_sparse())),
        (TypeError, "state: expected the pair", lambda s: setattr(s, "state", torch.zeros(2))),
        (TypeError, "h: expected a float32", lambda s: setattr(s, "state", (1, 2))),
        (
            ValueError,
            r"c: expected .* \(1, 2, 6\) .* \(1, 2, 5\)",
            lambda s: setattr(s, "state", (torch.zeros(1, 2, 6), torch.zeros(1, 2, 5))),
        ),
        (ValueError, r"rows: expected \(2,\) booleans", lambda s: s.reset(torch.ones(3).bool())),
        (ValueError, r"rows: expected indices in 0\.\.1, got 2", lambda s: s.reset([0, 2])),
        (ValueError, r"rows: expected indices in 0\.\.1, got -1", lambda s: s.reset(-1)),
        (TypeError, "rows: expected booleans or integers", lambda s: s.reset([0.5])),
        (TypeError, "neither copied nor pickled", copy.copy),
        (TypeError, "neither copied nor pickled", copy.deepcopy),
        (TypeError, "neither copied nor pickled", pickle.dumps),
    ],
)
def test_errors_of_calls(error, match, call):
    stream = make(4, 6).stream(2)
    with pytest.raises(error, match=match):
        call(stream)
    stream.step(torch.zeros(2, 4))

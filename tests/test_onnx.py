"""``torch.onnx.export``: valid graphs of standard nodes, which ONNX Runtime computes as we do."""

import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.nn.utils.rnn import pack_padded_sequence

import fastlstm
from fastlstm import backends
from fastlstm.options import CellOptions

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

# What the exporters say on every call: packages they miss, their own deprecations.
pytestmark = pytest.mark.filterwarnings("ignore")

TIME_AND_BATCH = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
STATES = ({1: Dim.DYNAMIC}, {1: Dim.DYNAMIC})


class _Model(nn.Module):
    """An LSTM inside a model, as users export them."""

    def __init__(self, *sizes, **options):
        super().__init__()
        self.lstm = fastlstm.LSTM(*sizes, **options)

    def forward(self, x, lengths=None):
        return self.lstm(x, lengths=lengths)


class _Together(nn.Module):
    """Several modules that read the same input, in one graph: an export takes seconds."""

    def __init__(self, *modules):
        super().__init__()
        self.each = nn.ModuleList(modules)

    def forward(self, x):
        return [module(x) for module in self.each]


def _nodes(path):
    """The number of each operator in a graph that ONNX's checker accepts."""
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    types = [node.op_type for node in model.graph.node]
    return {kind: types.count(kind) for kind in types}


def _run(path, *args):
    """The outputs of ONNX Runtime on these tensors."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    tensors = torch.utils._pytree.tree_leaves(args)
    names = [value.name for value in session.get_inputs()]
    feeds = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
    return [torch.from_numpy(value) for value in session.run(None, feeds)]


def _check(path, model, *args):
    """Compare ONNX Runtime with the reference in float64, within some roundings of float32."""
    double = torch.utils._pytree.tree_map(
        lambda t: t.double() if t.is_floating_point() else t, args
    )
    with torch.no_grad():
        expected = torch.utils._pytree.tree_leaves(model.double()(*double))
    model.float()
    found = _run(path, *args)
    for ours, truth in zip(found, (t for t in expected if t is not None), strict=True):
        torch.testing.assert_close(ours.double(), truth, rtol=1e-5, atol=1e-6)


@pytest.fixture
def export(tmp_path):
    """Export with ``dynamo=True``; returns the path."""

    def run(model, args, shapes):
        path = tmp_path / "model.onnx"
        torch.onnx.export(model, args, path, dynamo=True, dynamic_shapes=shapes, verbose=False)
        return path

    return run


OPTIONS = [
    {},
    {"bias": False, "backend": "cpu"},  # the backend does not matter
    {"peephole": True},
    {"batch_first": True, "backend": "reference"},
    {"bidirectional": True},
    {"num_layers": 2, "bidirectional": True, "peephole": True, "batch_first": True},
]


def test_layers(export):
    """Every layer of every module is one node, whose input P are the peepholes."""
    model = _Together(*(fastlstm.LSTM(4, 6, **options) for options in OPTIONS)).eval()
    path = export(model, (torch.randn(5, 3, 4),), (TIME_AND_BATCH,))
    nodes = _nodes(path)
    assert nodes["LSTM"] == sum(module.num_layers for module in model.each)
    assert "Scan" not in nodes and "Loop" not in nodes
    for size in ((5, 3), (9, 2), (1, 1)):
        _check(path, model, torch.randn(*size, 4))
    lstms = [list(node.input) for node in onnx.load(path).graph.node if node.op_type == "LSTM"]
    with_peepholes = sum(module.num_layers for module in model.each if module.peephole)
    assert sum(len(inputs) == 8 and bool(inputs[7]) for inputs in lstms) == with_peepholes
    assert not any(inputs[4] for inputs in lstms)  # no sequence_lens


@pytest.mark.parametrize("given", ["hx", "hx and lengths"])
def test_states_and_lengths(export, given):
    class Model(_Model):
        def forward(self, x, hx, lengths=None):
            return self.lstm(x, hx, lengths=lengths)

    def arguments(B, lengths):
        hx = torch.randn(2, B, 6), torch.randn(2, B, 6)
        return (torch.randn(5, B, 4), hx, torch.tensor(lengths))[: 3 if "lengths" in given else 2]

    model = Model(4, 6, bidirectional=True, peephole=True)
    shapes = (TIME_AND_BATCH, STATES, {0: Dim.DYNAMIC})[: 3 if "lengths" in given else 2]
    path = export(model, arguments(3, [5, 2, 1]), shapes)
    assert _nodes(path)["LSTM"] == 1
    _check(path, model, *arguments(2, [3, 5]))
    if "lengths" in given:  # the output past a length is zero
        y, h, _ = _run(path, *arguments(3, [5, 2, 1]))
        assert y[2:, 1].count_nonzero() == 0 and y[1:, 2].count_nonzero() == 0
        torch.testing.assert_close(h[0, 1], y[1, 1, :6])


def test_projections_are_scans(export):
    """With lengths; the scans of ``test_video_models`` have none."""
    model = _Model(4, 6, bidirectional=True, peephole=True, proj_size=3)
    arguments = torch.randn(5, 3, 4), torch.tensor([5, 2, 1])
    path = export(model, arguments, (TIME_AND_BATCH, {0: Dim.DYNAMIC}))
    nodes = _nodes(path)
    assert nodes["Scan"] == 2 and "LSTM" not in nodes
    _check(path, model, torch.randn(9, 2, 4), torch.tensor([4, 9]))


@pytest.mark.parametrize(
    "options",
    [
        {"layer_norm": True, "zoneout": (0.2, 0.3), "peephole": True, "bidirectional": True},
        {"cell_clip": 0.2, "recurrent_dropout": 0.5, "proj_size": 3},
    ],
    ids=str,
)
def test_options_of_cells_are_scans(export, options):
    model = _Model(4, 6, **options).eval()
    lengths = torch.tensor([3, 5, 1])
    path = export(model, (torch.randn(5, 3, 4), lengths), (TIME_AND_BATCH, {0: Dim.DYNAMIC}))
    _check(path, model, torch.randn(7, 2, 4), torch.tensor([7, 4]))
    assert _nodes(path)["Scan"] == 1 + model.lstm.bidirectional


@pytest.mark.parametrize("name, value", [("recurrent_dropout", 0.5), ("zoneout", (0.1, 0.1))])
def test_options_in_training_are_refused(export, name, value):
    """The exporter tries several ways, and may show the error of the last one."""
    model, x = _Model(4, 6, **{name: value}), torch.randn(5, 3, 4)
    with pytest.raises(torch.onnx.OnnxExporterError):
        export(model, (x,), (TIME_AND_BATCH,))
    if name == "zoneout":
        keep_h = torch.rand(5, 3, 1, 6)
        with pytest.raises(RuntimeError, match=r"zoneout.* call eval\(\) first"):
            backends.onnx._of_every_step(CellOptions(keep_h=keep_h), 0)
    else:
        problem = model.lstm.problem(x)
        assert backends.onnx.why_not(problem) == f"has no {name} in ONNX; call eval() first"


def test_cells(export):
    cells = _Together(*(fastlstm.LSTMCell(4, 6, peephole=p) for p in (False, True)))
    path = export(cells, (torch.randn(3, 4),), ({0: Dim.DYNAMIC},))
    assert _nodes(path)["LSTM"] == 2
    _check(path, cells, torch.randn(2, 4))


def test_unbatched(export):
    model = fastlstm.LSTM(4, 6)
    path = export(model, (torch.randn(5, 4),), ({0: Dim.DYNAMIC},))
    _check(path, model, torch.randn(9, 4))


def test_bfloat16_is_computed_in_float32(export):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = fastlstm.LSTM(4, 6, peephole=True).bfloat16()

        def forward(self, x):
            return self.lstm(x.bfloat16())[0].float()

    model, x = Model(), torch.randn(9, 2, 4)
    path = export(model, (torch.randn(5, 3, 4),), (TIME_AND_BATCH,))
    (found,) = _run(path, x)
    torch.testing.assert_close(found, model(x).detach(), rtol=2**-7, atol=2**-7)


class _Encoder(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, frames):
        return self.model.encode(frames)


@pytest.mark.parametrize(
    "model, lstms, scans",
    [
        (_Encoder(fastlstm.LSTMAutoencoder(4, 6, 2)), 2, 0),
        (fastlstm.CompositeLSTM(4, 6, basis="dct"), 3, 0),
        (fastlstm.LSTMAutoencoder(4, 6, conditional=True), 2, 0),
        # Of two decoders one reads: their gates are computed outside, and no node takes those.
        (fastlstm.CompositeLSTM(4, 6, conditional_reconstruction=True), 1, 2),
    ],
    ids=["encode", "dct", "conditional", "mixed"],
)
def test_video_models(export, model, lstms, scans):
    path = export(model, (torch.rand(5, 3, 4),), (TIME_AND_BATCH,))
    nodes = _nodes(path)
    assert (nodes["LSTM"], nodes.get("Scan", 0)) == (lstms, scans)
    _check(path, model, torch.rand(9, 2, 4))


def test_a_packed_sequence_is_refused(export):
    class Model(_Model):
        def forward(self, x, lengths):
            packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
            return self.lstm(packed)[1]

    arguments = torch.randn(5, 3, 4), torch.tensor([5, 2, 1])
    with pytest.raises(Exception, match="expected a padded batch with lengths"):
        export(Model(4, 6), arguments, (TIME_AND_BATCH, {0: Dim.DYNAMIC}))


def _export_by_trace(model, args, path):
    """The exporter of ``dynamo=False``, which torch has deprecated."""
    names = ["x", "lengths"][: len(args)]
    axes = {"x": {0: "T", 1: "B"}, "lengths": {0: "B"}}
    axes = {name: axes[name] for name in names}
    torch.onnx.export(model, args, path, dynamo=False, input_names=names, dynamic_axes=axes)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("lengths", [False, True])
def test_older_exporter(tmp_path, options, lengths):
    model, path = _Model(4, 6, **options).eval(), tmp_path / "model.onnx"
    B = 5 if options.get("batch_first") else 3
    rows = (torch.ones(B, dtype=torch.int64),) if lengths else ()
    _export_by_trace(model, (torch.randn(5, 3, 4), *rows), path)
    assert _nodes(path)["LSTM"] == model.lstm.num_layers
    rows = (torch.arange(1, 3),) if lengths else ()
    x = torch.randn(2, 9, 4) if options.get("batch_first") else torch.randn(9, 2, 4)
    _check(path, model, x, *rows)


def test_older_exporter_refuses_a_projection(tmp_path):
    with pytest.raises(RuntimeError, match="needs dynamo=True"):
        _export_by_trace(_Model(4, 6, proj_size=3), (torch.randn(5, 3, 4),), tmp_path / "m.onnx")

"""The compiled functions take exactly the fields of their struct, by name."""

import re

import emulation
import pytest

from fastlstm import _C

OPTIONS = dict.fromkeys(("hidden_mask", "keep_h", "keep_c"), 0) | {"cell_clip": 0.0}
OPTIONS |= dict.fromkeys(("keep_h_stride", "keep_c_stride"), (0, 0, 0))
VALUES = {
    "dtype": "float32",
    "reverse": [False],
    "isa": "auto",
    "num_threads": 1,
    "is_prepacked": False,
    "layered": False,
    "products": "tf32",
    "G": 1,
    "options": OPTIONS,
}
WRONG = {"dtype": 1, "is_prepacked": 1, "layered": None, "reverse": 0, "plan": [], "isa": b"auto"}
WRONG["products"] = 1


def _fields(function):
    """The names of a function's arguments, and a value for each: a call of no steps and rows."""
    signature = function.__doc__.splitlines()[0]
    listed = signature[signature.index("(*, ") + 4 : signature.rindex(") -> None")]
    types = dict(field.split(": ") for field in re.sub(", (int|object)", "", listed).split(", "))
    zero = {"tuple[int]": (0, 0), "dict[str]": PLAN}
    fields = {name: VALUES.get(name, zero.get(kind, 0)) for name, kind in types.items()}
    if types.get("options") == "int":  # an address, of the kernels for CPUs
        fields["options"] = 0
    return fields | {name: (0, 0, 0) for name in fields if name.endswith("stride")}


MEMBERS = """kernel k_warps tiles chunk_steps units slices tile_rows register_steps shared_steps
stages shared_bytes workspace_bytes"""
PLAN = dict.fromkeys(MEMBERS.split(), 0)
CUDA = ("forward", "backward", "cell_forward", "cell_backward")
CUDA += tuple(f"{name}_with_options" for name in CUDA)
CUDA += ("normalized_cell_forward", "normalized_cell_backward")


CPU = ("lstm_forward", "lstm_backward", "layer_norm_forward", "layer_norm_backward")


@pytest.fixture(params=[*CPU, *(f"cuda.{name}" for name in CUDA)])
def function(request):
    """Each of them; those for GPUs by their emulation, if they were not built."""
    module, _, name = request.param.rpartition(".")
    if not module:
        return getattr(_C, name)
    return getattr(_C.cuda if _C.cuda.built else emulation.module("cuda_emulation"), name)


def test_a_call_of_nothing(function):
    assert function(**_fields(function)) is None


def test_positional_arguments_are_refused(function):
    with pytest.raises(TypeError, match="keyword arguments alone"):
        function("float32", **_fields(function))


def test_a_missing_field_is_named(function):
    fields = _fields(function)
    for name in fields:
        others = {other: value for other, value in fields.items() if other != name}
        with pytest.raises(TypeError, match=f"{function.__name__}: missing argument {name}$"):
            function(**others)
    with pytest.raises(TypeError, match="missing argument dtype"):
        function()


def test_an_unknown_field_is_named(function):
    with pytest.raises(TypeError, match=f"{function.__name__}: unknown argument states$"):
        function(**_fields(function), states=0)


def test_a_value_of_a_wrong_type_is_named(function):
    fields = _fields(function)
    for name in fields:
        for wrong in (WRONG.get(name, "text"), None, 0.5):
            with pytest.raises(TypeError, match=rf"{function.__name__}: {name}: expected .*, got"):
                function(**fields | {name: wrong})


@pytest.mark.parametrize("name", ["T", "hx", "num_threads"])
@pytest.mark.parametrize("number", [2**64, -(2**64)])
def test_a_number_out_of_range_is_named(name, number):
    fields = _fields(_C.lstm_forward) | {name: number}
    with pytest.raises(TypeError, match=f"{name}: expected int, got {number}"):
        _C.lstm_forward(**fields)


def test_values_are_checked_after_types(function):
    fields = _fields(function)
    with pytest.raises(ValueError, match="dtype: expected float32, float64, bfloat16 or float16"):
        function(**fields | {"dtype": "int8"})
    with pytest.raises(ValueError, match="reverse: expected 1 flags, got 2"):
        function(**fields | {"reverse": [True, False]})


def test_sequences_and_integers_of_other_types(function):
    """Whatever has __index__ is a number, and any sequence has flags."""

    class Index:
        def __index__(self):
            return 0

    for reverse in ((0,), b"\0", [True]):
        function(**_fields(function) | {"reverse": reverse, "T": Index()})

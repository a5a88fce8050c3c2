"""The emulation of CUDA computes correct kernels correctly, and finds each mistake put into one."""

import emulation
import pytest
import torch

SEEDS = range(16)
T, B, H = 6, 8, 64  # fixed in harness/recurrence.cu


@pytest.fixture
def harness():
    """The module of the small kernels, as it was imported."""
    module = emulation.module("emulation_harness")
    yield module
    module.set_fault("none")
    module.set_schedule(0)
    module.pretend()


@pytest.fixture(scope="module")
def problem():
    """The weight, x, the first h, and the correct h after T steps."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(H, H, generator=generator).mul(0.2).bfloat16()
    x = torch.randn(T, H, generator=generator)
    first = torch.randn(B, H, generator=generator).tanh().bfloat16()
    h = first.double()
    for t in range(T):
        h = (h @ weight.double().T + x[t].double()).tanh().bfloat16().double()
    return weight, x, first, h


def run(harness, problem, **options):
    """Run the small kernel; return whether its h is correct."""
    weight, x, first, truth = problem
    exchanged = torch.stack([first, torch.full_like(first, torch.nan)])
    counter = torch.full([1], -1, dtype=torch.int32)
    addresses = (t.data_ptr() for t in (weight, x, exchanged, counter))
    assert harness.recurrence(T, *addresses, **options) == "cudaSuccess"
    # A sum in another order may round h to the neighbour, in any step: errors shrink again.
    return bool(((exchanged[T % 2].double() - truth).abs() <= 0.02).all())


def rounded(format, values):
    """Round float32 numbers to a format."""
    if format == "tf32":  # 13 bits fewer, to nearest, ties away from zero
        bits = values.view(torch.int32)
        return torch.where(values.isfinite(), (bits + 0x1000) & -0x2000, bits).view(torch.float32)
    return values.to(getattr(torch, format)).float()


@pytest.mark.parametrize("format", ["bfloat16", "float16", "tf32"])
def test_numbers_are_rounded_as_by_the_hardware(harness, format):
    """All bit patterns of the upper half of a float, with lower halves near the ties."""
    upper = torch.arange(2**16, dtype=torch.int64) << 16
    lower = torch.tensor([0, 1, 0x0FFF, 0x1000, 0x1001, 0x3000, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    bits = (upper[:, None] + lower).flatten()
    values = torch.where(bits >= 2**31, bits - 2**32, bits).int().view(torch.float32)
    if format == "tf32":
        values = values[~values.isnan()]
    found = torch.empty_like(values)
    harness.round_trip(format, values.data_ptr(), found.data_ptr(), values.numel())
    torch.testing.assert_close(found, rounded(format, values), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("format", ["bfloat16", "float16", "tf32"])
def test_a_product_of_fragments(harness, format):
    K = 8 if format == "tf32" else 16
    a, b, d = torch.randn(16, K), torch.randn(8, K), torch.empty(16, 8)
    harness.product(format, a.data_ptr(), b.data_ptr(), d.data_ptr())
    exact = rounded(format, a).double() @ rounded(format, b).double().T
    torch.testing.assert_close(d.double(), exact, rtol=0, atol=K * 2e-6)


def test_a_sum_over_a_warp(harness):
    numbers = torch.arange(32, dtype=torch.float32)
    harness.warp_sum(numbers.data_ptr())
    assert numbers.eq(31 * 32 / 2).all()


def test_a_correct_kernel_is_right_under_every_schedule(harness, problem):
    for seed in SEEDS:
        harness.set_schedule(seed)
        assert run(harness, problem)


def found(harness, problem):
    """The number of seeds that find a mistake."""
    count = 0
    for seed in SEEDS:
        harness.set_schedule(seed)
        try:
            count += not run(harness, problem)
        except RuntimeError:
            count += 1
    return count


@pytest.mark.parametrize("fault", ["poll", "wait_copies", "load_matrices", "multiply_add"])
def test_a_planted_fault_is_found(harness, problem, fault):
    harness.set_fault(fault)
    assert found(harness, problem) > 0


def test_each_barrier_that_is_left_out_is_found(harness, problem):
    harness.take_sites("syncthreads")
    run(harness, problem)
    sites = harness.take_sites("syncthreads")
    assert len(sites) == 4
    for site in sites:
        harness.set_fault("syncthreads", site)
        assert found(harness, problem) > 0, site


def test_a_launch_that_is_not_cooperative_has_no_barrier_of_blocks(harness, problem):
    with pytest.raises(RuntimeError, match=r"deadlock: .*block .* in poll at recurrence.cu"):
        for seed in SEEDS:
            harness.set_schedule(seed)
            run(harness, problem, cooperative=False)


@pytest.mark.parametrize(
    "mistake, words",
    [
        ("divergent_barrier", "meet in __syncthreads at mistakes.cu:[0-9]+ and at mistakes.cu"),
        ("divergent_warp", "lanes of a warp meet in .* and in .*, in thread"),
        ("lost_lane", "deadlock: thread .32, 0, 0. of block .* and 30 more in __syncwarp"),
        ("endless_poll", "deadlock: .* in poll at mistakes.cu:[0-9]+, which reads 2"),
        ("livelock", "no end after [0-9]+ switches: .* in __syncwarp"),
        ("past_the_end", "block .0, 0, 0. wrote outside of its 1024 bytes of shared memory"),
        ("copy_past_the_end", "copy_async_16 at mistakes.cu:[0-9]+: offset 1024 is not"),
        ("misaligned_matrices", "load_matrices at mistakes.cu:[0-9]+: offset [0-9]+ is not"),
    ],
)
def test_a_mistake_ends_the_launch(harness, mistake, words):
    harness.set_schedule(0, switches=100_000)
    with pytest.raises(RuntimeError, match=words):
        harness.mistake(mistake)


@pytest.mark.parametrize("mistake", ["unwritten_shared", "no_syncwarp_after_copies"])
def test_a_mistake_shows_as_nan(harness, mistake):
    results = set()
    for seed in SEEDS:
        harness.set_schedule(seed)
        results.add(harness.mistake(mistake))
    assert "NaN" in results


@pytest.mark.parametrize(
    "mistake, error",
    [
        ("too_much_shared", "cudaErrorInvalidValue"),
        ("too_many_blocks", "cudaErrorCooperativeLaunchTooLarge"),
    ],
)
def test_a_launch_beyond_the_device_is_refused(harness, mistake, error):
    assert harness.mistake(mistake) == error

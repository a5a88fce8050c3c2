"""A run on three hosts resumes when a host dies, is cut off for a while, or comes back.

The hosts are namespaces of this machine (``hosts.py``). On each of them torchrun starts one process
(``hosts_fit.py``); they share the disk. The rendezvous store is beside the hosts, so that any of
them may die.
"""

import random
import sys
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist
from hosts import BRIDGE, address, hosts, why_no_hosts

WHY_NOT = why_no_hosts()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=f"no hosts here: {WHY_NOT}")

slow = [
    pytest.mark.slow,  # each starts three agents and as many trainings, several times
    pytest.mark.skipif(not dist.is_gloo_available(), reason="torch has no gloo here"),
]

HERE = Path(__file__).parent
PORT = 29400
STORE = (
    "import time, torch.distributed as d;"
    f"store = d.TCPStore('0.0.0.0', {PORT}, is_master=True, wait_for_workers=False);"
    "time.sleep(1e6)"
)
ROWS, STEPS, SAVE_EVERY = 6, 120, 10
LIMIT = 300  # seconds that a run may take


def connects(bed, number, to):
    """Whether a host connects to a port of host ``to`` within a second."""
    code = f"import socket; socket.create_connection(({address(to)!r}, 5000), 1)"
    bed.start(number, [sys.executable, "-S", "-c", code])
    while bed.status(number) is None:
        time.sleep(0.01)
    return bed.status(number) == 0


def test_hosts_are_killed_cut_off_and_mended(tmp_path):
    serve = (
        "import os, socket, time\n"
        "server = socket.create_server(('', 5000))\n"
        "if os.fork():\n"  # the child accepts; the parent is the one that is killed
        "    server.close()\n"
        "    print('serves', flush=True)\n"
        "    time.sleep(1e6)\n"
        "while True:\n"
        "    server.accept()\n"
    )
    with hosts(tmp_path) as bed:
        bed.start(1, [sys.executable, "-S", "-c", serve])
        while not bed.log(1).read_text():
            time.sleep(0.01)
        assert connects(bed, 2, to=1) and connects(bed, 3, to=1)
        bed.cut(3)
        assert connects(bed, 2, to=1) and not connects(bed, 3, to=1)
        bed.mend(3)
        assert connects(bed, 3, to=1)
        bed.kill(1)
        assert not connects(bed, 2, to=1)


class Run:
    """A training run on the hosts of a bed.

    Args:
        bed: of ``hosts``.
        folder: of the run's files.
        nodes: how many hosts torchrun needs, such as "2:3".
        timeout: of a collective, in seconds.
        pause: seconds after each step, so that a host has the time to come back.
    """

    def __init__(self, bed, folder, nodes="3", timeout=60, pause=0.02):
        self.bed = bed
        self.nodes = nodes
        self.records = folder / "records"
        self.records.mkdir()
        text = folder / "text"
        text.mkdir()
        letters = np.random.default_rng(0).integers(97, 123, (60, 60), np.uint8)
        for number, each in enumerate(letters):  # an epoch is about 90 windows
            (text / f"{number}.txt").write_bytes(each.tobytes())
        settings = {
            "run": folder / "run",
            "save_every": SAVE_EVERY,
            "ckpt_path": "auto",
            "global_batch_size": ROWS,
            "data": "fastlstm.training.TextData",
            "data.folder": text,
            "data.k1": 6,
            "model.model": "fastlstm.ByteLSTM",
            "model.model.hidden_size": 8,
            "model.schedule": "constant",
            "trainer.max_steps": STEPS,
            "trainer.accelerator": "cpu",
            "trainer.limit_val_batches": 0,
            "trainer.limit_test_batches": 0,
            "trainer.enable_progress_bar": "false",
            "trainer.strategy": "lightning.pytorch.strategies.DDPStrategy",
            "trainer.strategy.timeout": str(timedelta(seconds=timeout)),
            # keeps DDP's buckets from the first step on, and so the order of its sums
            "trainer.strategy.find_unused_parameters": "true",
            "trainer.callbacks+": "hosts_fit.Record",
            "trainer.callbacks.folder": self.records,
            "trainer.callbacks.pause": pause,
        }
        self.words = ["fit", *(f"--{name}={value}" for name, value in settings.items())]
        bed.start(0, [sys.executable, "-c", STORE])
        for number in (1, 2, 3):
            self.start(number)

    def start(self, number):
        agent = {
            "nnodes": self.nodes,
            "nproc-per-node": 1,
            "max-restarts": 20,
            "monitor-interval": 0.5,
            "local-addr": address(number),
            "rdzv-backend": "c10d",
            "rdzv-endpoint": f"{BRIDGE}:{PORT}",
            "rdzv-id": "run",
            "rdzv-conf": "is_host=0,last_call_timeout=5,keep_alive_interval=1",
        }
        options = [f"--{name}={value}" for name, value in agent.items()]
        program = ["--", str(HERE / "hosts_fit.py"), *self.words]
        self.bed.start(
            number,
            [sys.executable, "-m", "torch.distributed.run", *options, *program],
            PYTHONPATH=f"{HERE.parent}:{HERE}",
            OMP_NUM_THREADS="1",
            GLOO_SOCKET_IFNAME="eth0",
            TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1",
        )

    def hurry(self):
        """Let the steps from now on follow each other without a pause."""
        from hosts_fit import HURRY

        (self.records / HURRY).touch()

    def starts(self):
        from hosts_fit import read_starts

        return read_starts(self.records)

    def wait(self, what, number_of_starts=1, step=1):
        """Wait until a start has made a step, and return the start."""
        began = time.monotonic()
        while time.monotonic() - began < LIMIT:
            starts = self.starts()
            if len(starts) >= number_of_starts and max(starts[-1].steps) >= step:
                return starts[-1]
            time.sleep(0.1)
        raise AssertionError(f"{what}: not within {LIMIT} s; {self.bed.logs}")

    def finish(self, *numbers):
        """Wait until the programs of these hosts have ended, and return the starts."""
        began = time.monotonic()
        while any(self.bed.status(number) is None for number in numbers):
            assert time.monotonic() - began < LIMIT, f"not finished; see {self.bed.logs}"
            time.sleep(0.1)
        assert [self.bed.status(number) for number in numbers] == [0] * len(numbers)
        return self.starts()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    with hosts(folder) as bed:
        (start,) = Run(bed, folder).finish(1, 2, 3)
    assert sorted(start.steps) == list(range(1, STEPS + 1))
    rows = [row for step in start.steps for row in start.rows(step)]
    assert len(set(rows)) > 0.9 * len(rows)  # so that another row would be noticed
    return start


def check(starts, expected):
    """Check that a run trained as the undisturbed one did, step by step.

    Each start begins at the step after a checkpoint, and no later than where the one before ended.
    The rows of each step are those of the undisturbed run. Losses are equal to the bit as long as
    there were three processes, and close after a time with another number.
    """
    done, exact = 0, True
    for start in starts:
        steps = sorted(start.steps)
        exact = exact and start.processes == expected.processes
        assert (steps[0] - 1) % SAVE_EVERY == 0 and steps[0] <= done + 1
        assert steps == list(range(steps[0], steps[-1] + 1))
        for step in steps:
            if not start.is_whole(step):  # some were killed before they wrote it down
                assert step == steps[-1]
                continue
            assert start.rows(step) == expected.rows(step), step
            losses = start.losses(step)
            if exact:
                assert losses == expected.losses(step), step
            else:
                loss = np.mean(expected.losses(step))
                np.testing.assert_allclose(np.mean(losses), loss, rtol=1e-5)
            done = step
    assert done == STEPS


def report(scenario, **values):
    print(f"\n{scenario}:", *(f"{name} {value:.1f}," for name, value in values.items()))


numbers = pytest.mark.parametrize("number", range(10))


def disturbed(number):
    """The host that is disturbed in test ``number``, and the step after which."""
    return number % 3 + 1, random.randrange(SAVE_EVERY, STEPS // 3)


class TestSlow:
    pytestmark = slow

    @numbers
    def test_a_link_is_cut_for_20_s_and_a_host_dies_and_comes_back(
        self, tmp_path, undisturbed, number
    ):
        """Three hosts are needed: the run waits, and repeats the same losses to the bit."""
        host, step = disturbed(number)
        with hosts(tmp_path) as bed:
            run = Run(bed, tmp_path, pause=0.1)
            run.wait("the first steps", step=step)
            bed.cut(host)
            time.sleep(20)
            (before,) = run.starts()
            bed.mend(host)
            mended = time.time()
            after = max(before.steps) + 5
            waited = run.wait("steps after the cut", step=after)
            bed.kill(host)
            killed = time.time()
            run.start(host)
            run.hurry()
            first, second = run.finish(1, 2, 3)
        check([first, second], undisturbed)
        report(
            f"host {host}, step {step}",
            went_on_after_the_cut=waited.time(max(before.steps) + 1) - mended,
            resumed_after_the_death=second.time(min(second.steps)) - killed,
            steps_made_again=max(first.steps) - min(second.steps) + 1,
        )

    @numbers
    def test_a_host_dies_and_two_go_on_until_it_comes_back(self, tmp_path, undisturbed, number):
        host, step = disturbed(number)
        with hosts(tmp_path) as bed:
            run = Run(bed, tmp_path, nodes="2:3", pause=0.3)
            run.wait("the first steps", step=step)
            bed.kill(host)
            killed = time.time()
            run.wait("two hosts", number_of_starts=2)
            run.start(host)
            returned = time.time()
            run.wait("three hosts", number_of_starts=3)
            run.hurry()
            starts = run.finish(1, 2, 3)
        assert [start.processes for start in starts] == [3, 2, 3]
        check(starts, undisturbed)
        report(
            f"host {host}, step {step}",
            resumed_after_the_death=starts[1].time(min(starts[1].steps)) - killed,
            three_after_the_return=starts[2].time(min(starts[2].steps)) - returned,
        )

    @numbers
    def test_a_link_is_cut_for_longer_than_the_timeout(self, tmp_path, undisturbed, number):
        """The others go on without the host, and take it in when it comes back."""
        host, step = disturbed(number)
        with hosts(tmp_path) as bed:
            run = Run(bed, tmp_path, nodes="2:3", timeout=10, pause=0.3)
            run.wait("the first steps", step=step)
            bed.cut(host)
            cut = time.time()
            run.wait("two hosts", number_of_starts=2)
            bed.mend(host)
            mended = time.time()
            run.wait("three hosts", number_of_starts=3)
            run.hurry()
            starts = run.finish(1, 2, 3)
        assert [start.processes for start in starts] == [3, 2, 3]
        check(starts, undisturbed)
        report(
            f"host {host}, step {step}",
            resumed_after_the_cut=starts[1].time(min(starts[1].steps)) - cut,
            three_after_the_return=starts[2].time(min(starts[2].steps)) - mended,
        )

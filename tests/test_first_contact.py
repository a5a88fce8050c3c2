"""benchmarks/gpu/first_contact: tasks that hang, crash or lose the device cost only themselves."""

import argparse
import os
import subprocess
import sys
import time

import pytest

from benchmarks.gpu import planted, watcher, worker
from benchmarks.gpu.first_contact import __main__ as script
from benchmarks.gpu.first_contact import report, tasks


def _lives(process):
    """Whether a process runs; one that nobody has waited for yet does not."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _dies(process):
    for _ in range(100):
        if not _lives(process):
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def contact(tmp_path):
    """A function that starts the script's run in one folder, again and again."""
    made = []

    def start(*again, seconds=60):
        options = {"device": "cpu", "small": True, "seconds": seconds, "again": again}
        made.append(script.Contact(argparse.Namespace(out=tmp_path, **options)))
        return made[-1]

    yield start
    for one in made:
        one.worker.close()


def test_the_watcher_imports_neither_torch_nor_the_library():
    code = "import sys, benchmarks.gpu.first_contact.__main__ as m, benchmarks.gpu.watcher\n"
    code += "assert not {'torch', 'fastlstm', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=watcher.ROOT)


def test_a_worker_is_replaced_when_a_task_ends_it(contact, tmp_path):
    run = contact()
    for task in tasks.planted():
        run.ask(task)
        run.ask(tasks.Task(f"{tasks.PLANTED}:process", {"after": task.name}, 30))
    rows = {row["task"]: row for row in run.log.rows}
    ended = {task.name: rows[task.name]["ended"] for task in tasks.planted()}
    assert ended == {
        "raise_an_error": "ValueError: planted",
        "lose_the_device": "RuntimeError: CUDA error: an illegal memory access was encountered",
        "hang": "no answer after 2 s",
        "leave": "the worker ended: status 3",
        "die": "the worker ended: status -9",
    }
    processes = [rows[f"process {name}"]["process"] for name in ended]
    assert len(set(processes)) == 5  # only the error left a worker that is of use
    run.worker.close()
    assert all(map(_dies, processes))
    assert len(list(tmp_path.iterdir())) <= 8


def test_a_second_run_asks_only_what_is_not_in_order(contact, tmp_path):
    def names():
        first = contact()
        first.ask(tasks.Task(f"{tasks.PLANTED}:process", {"after": "one"}, 30))
        first.ask(tasks.Task(f"{tasks.PLANTED}:raise_an_error", {}, 30))
        return [row["task"] for row in first.log.rows]

    assert names() == ["process one", "raise_an_error"]
    with (tmp_path / "first_contact.jsonl").open("a") as file:
        file.write('{"task": "half a li')  # the watcher was killed here
    assert names() == ["process one", "raise_an_error", "raise_an_error"]
    again = contact("process")
    assert not again.is_known("process one")


def test_nothing_begins_without_time(contact):
    run = contact(seconds=1)
    run.ask(tasks.Task(f"{tasks.PLANTED}:process", {"after": "one"}, 30))
    assert run.begin("command", ["true"], 30) is None
    assert [row["ended"] for row in run.log.rows] == ["not begun: no time left"] * 2


def test_a_command_ends_with_its_children(tmp_path):
    outputs = watcher.Outputs(tmp_path / "logs.txt")
    code = "sleep 600 & echo $!; "
    found = {}
    for name, rest in {"hangs": "wait", "fails": "exit 7"}.items():
        found[name] = watcher.Command(outputs, name, ["bash", "-c", code + rest], 1).finish()
        assert _dies(int(found[name]["tail"].split()[0]))
    assert found["hangs"]["ended"] == "stopped after 1 s" and not found["hangs"]["ok"]
    assert found["fails"]["ended"] == "exit 7" and not found["fails"]["ok"]
    assert "==== hangs" in (tmp_path / "logs.txt").read_text()
    refused = watcher.Command(outputs, "none", ["/no/such/program"], 1).finish()
    assert not refused["ok"] and "not run" in refused["ended"]


def test_cublas_has_the_same_bits_on_every_stream(tmp_path, monkeypatch):
    """In processes of the watcher, and in tests: cuBLAS promises it with this setting alone."""
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] in (":4096:8", ":16:8")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    code = "import os; print(os.environ['CUBLAS_WORKSPACE_CONFIG'])"
    assert watcher.start([sys.executable, "-c", code], tmp_path / "output").wait(30) == 0
    assert (tmp_path / "output").read_text() == ":4096:8\n"


def test_a_command_ends_with_a_watcher_that_is_terminated(tmp_path):
    code = "import time; from pathlib import Path; from benchmarks.gpu import watcher\n"
    code += "watcher.stop_all_at_exit()\n"
    code += f"process = watcher.start(['sleep', '600'], Path({str(tmp_path / 'output')!r}))\n"
    code += "print(process.pid, flush=True); time.sleep(600)"
    watching = subprocess.Popen(
        [sys.executable, "-c", code], cwd=watcher.ROOT, stdout=subprocess.PIPE, text=True
    )
    command = int(watching.stdout.readline())
    assert _lives(command)
    watching.terminate()
    assert watching.wait(30) == 128 + 15
    assert _dies(command)


def test_a_worker_ends_with_a_watcher_that_is_killed(tmp_path):
    code = "import os; from pathlib import Path; from benchmarks.gpu import watcher\n"
    code += f"w = watcher.Worker(Path({str(tmp_path / 'errors')!r}))\n"
    code += "print(w.ask('benchmarks.gpu.planted:process', {'after': ''}, 30), flush=True)\n"
    code += "os.kill(os.getpid(), 9)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=watcher.ROOT, stdout=subprocess.PIPE, text=True
    )
    assert done.returncode == -9
    assert _dies(int(done.stdout.rpartition(":")[2].strip(" }\n")))


def test_the_build_is_for_one_gpu_and_needs_no_network(contact, monkeypatch):
    monkeypatch.delenv("FASTLSTM_CUDA_ARCHITECTURES", raising=False)
    run = contact()
    run.device = "cuda"
    commands = []
    monkeypatch.setattr(run, "begin", lambda name, command, box: commands.append(command))
    script._build(run)
    assert {"--no-build-isolation", "--no-deps", "-e", "."} <= set(commands[0])
    assert os.environ.pop("FASTLSTM_CUDA_ARCHITECTURES") == "90-real"


def test_the_gpu_tests_run_in_four_processes_and_stop_when_they_hang(contact, monkeypatch):
    """In one, Triton would compile its kernels one after the other, 3 to 5 s each."""
    run = contact()
    started = {}
    monkeypatch.setattr(run, "begin", lambda name, command, box: started.update({name: command}))
    for installed in (True, False):
        monkeypatch.setattr(script, "find_spec", lambda name, found=installed: found or None)
        script._tests(run)
        words = started["pytest"]
        assert words[words.index("-m", 2) + 1] == "gpu and not slow"
        assert ("-n" in words and words[words.index("-n") + 1] == "4") is installed
        assert ("--timeout=60" in words) is installed
        files = [word.removeprefix("tests/") for word in words if word.startswith("tests/")]
        assert files == list(tasks.TESTS) and len(set(files)) == len(files)
    assert {"compute-sanitizer memcheck", "compute-sanitizer racecheck"} < set(started)


def test_without_a_build_nothing_is_tested(contact, monkeypatch):
    run = contact()
    monkeypatch.setattr(script, "_build", lambda run: run.begin("build", ["false"], 30))
    monkeypatch.setattr(script, "_barrier", lambda run: None)
    monkeypatch.setattr(script.tasks, "baselines", lambda device, small: ())
    script.run(run, install=True, plant=False)
    run.end()
    assert [row["task"] for row in run.log.rows][:2] == ["build", "stop"]
    assert "nothing to test" in run.log.path.with_name("report.txt").read_text()


@pytest.mark.parametrize(
    "error, lost",
    [
        ("CUDA error: device-side assert triggered", True),
        ("cudaLaunchKernelEx: cudaErrorLaunchFailure (unspecified launch failure)", True),
        ("CUBLAS_STATUS_EXECUTION_FAILED when calling cublasSgemm", True),
        ("CUDA out of memory. Tried to allocate 2 GiB", False),
        ("backend='cuda' cannot run this LSTM", False),
    ],
)
def test_which_errors_lose_the_device(monkeypatch, error, lost):
    def fail():
        raise RuntimeError(error)

    monkeypatch.setattr(planted, "fail", fail, raising=False)
    answer = worker.do("benchmarks.gpu.planted:fail", {})
    assert answer == {"ok": False, "ended": f"RuntimeError: {error}", "lost": lost}


def test_the_tests_are_collected_where_extras_are_missing(tmp_path):
    """Those that need a GPU run on a machine that has little beside torch, and a GPU."""
    hide = "import sys\nfor name in ('av', 'jsonargparse', 'mlxtend', 'skvideo'):\n"
    hide += "    sys.modules[name] = None\nimport torch\ntorch.cuda.is_available = lambda: True\n"
    (tmp_path / "hide.py").write_text(hide)
    pytest = [sys.executable, "-m", "pytest", "-p", "hide", "-p", "no:cacheprovider"]
    files = ["tests/test_frame_features.py", *(f"tests/{name}" for name in tasks.TESTS)]
    path = os.pathsep.join([str(tmp_path), str(watcher.ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*pytest, "-m", "gpu", "--collect-only", "-q", "-rs", *files],
        cwd=watcher.ROOT,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert all(f"{name}: " in done.stdout for name in tasks.TESTS)  # each has some
    assert "without ['av', 'jsonargparse', 'mlxtend', 'skvideo']" in done.stdout


def test_every_task_has_a_name_of_its_own():
    for small in (True, False):
        for device in ("cpu", "cuda"):
            found = [tasks.planted(), tasks.baselines(device, small), tasks.times(device, small)]
            found.append(tasks.checks(device, small))
            names = [task.name for group in found for task in group]
            assert len(names) == len(set(names))
    assert all((watcher.ROOT / "tests" / name).exists() for name in tasks.TESTS)


def test_small_checks_and_times_are_in_order(contact):
    """Every function that the worker calls on a GPU runs on a CPU too."""
    run = contact()
    for task in [*tasks.checks("cpu", True), *tasks.times("cpu", True)]:
        run.ask(task)
    run.ask(next(iter(tasks.baselines("cpu", True))))
    run.end()
    assert [row for row in run.log.rows if not row["ok"]] == []
    assert os.path.exists(run.log.path.with_name("measured.txt"))
    text = run.log.path.with_name("report.txt").read_text()
    assert "us a step" in text and "contact bfloat16" in text and "wrong" not in text


def test_the_report_says_what_is_wrong_until_it_is_right():
    rows = [
        {"task": "contact", "ok": False, "error": 0.5, "s": 1.0},
        {"task": "repeat", "ok": False, "different": 3},
        {"task": "pytest", "ok": False, "ended": "exit 1", "tail": "\n1 failed\n"},
    ]
    (table,) = report.tables(rows)
    assert table.title == "wrong"
    assert [row[2] for row in table.rows] == ["error 0.5", "different 3", "exit 1: 1 failed"]
    mended = report.tables([*rows, {"task": "contact", "ok": True, "error": 1e-3, "s": 1.0}])
    assert [(t.title, len(t.rows)) for t in mended] == [("right", 1), ("wrong", 2)]
    assert "0.001" in report.plain(mended)


def test_the_report_has_the_layouts_and_the_times_that_were_refused():
    sizes = {"precision": "bfloat16", "H": 64, "B": 1, "G": 1, "direction": "forward"}
    plan = {"slices": 2, "tiles": 1}
    rows = [
        {**sizes, "rank": "0", "us": 3.0, "model_us": 2.0, "plan": plan},
        {**sizes, "rank": "5", "us": 2.5, "model_us": 4.0, "plan": plan},
        {**sizes, "rank": "7", "us": 9.0, "model_us": 9.5, "plan": plan},
        {**sizes, "rank": "8", "refused": "errs", "plan": plan},
        {**sizes, "rank": "step by step", "us": 20.0},
    ]
    cell = {"precision": "bfloat16", "H": 64, "B": 1, "L": 1, "D": 1, "train": True}
    cell |= {"nn.LSTM us": 5.0, "cuda refused": "no kernels", "floor_us": None}
    found = [{"task": "layouts", "ok": True, "rows": rows}]
    found.append({"task": "row 1", "ok": True, "row": cell})
    titles = {table.title: table for table in report.tables(found)}
    assert [row[2] for row in titles["layouts"].rows] == ["0", "step by step", "5"]
    (row,) = titles["us a step"].rows
    assert "5" in row and "no kernels" in row


def test_the_report_is_plain_text_without_rich(monkeypatch, capsys):
    found = report.tables([{"task": "contact", "ok": True, "error": 0.5, "s": 1.0}])
    report.show(found)
    drawn = capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "rich.console", None)
    report.show(found)
    plain = capsys.readouterr().out
    assert plain.rstrip() == report.plain(found).rstrip()
    assert all(word in text for word in ("contact", "0.5") for text in (drawn, plain))

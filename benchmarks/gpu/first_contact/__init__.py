"""The first minutes on a GPU: everything that matters once, the most valuable first.

    python -m benchmarks.gpu.first_contact --out FOLDER [--seconds 530] [--install] [--plant]
    python -m benchmarks.gpu.first_contact --out FOLDER --device cpu --small    # try the script
    python -m benchmarks.gpu.first_contact --out FOLDER --report                # print the tables

One process watches; it imports neither torch nor fastlstm. A worker does one task at a time; a task
that hangs, crashes or loses the device costs its own time box and a new worker, and is on record.
Every result is a line of FOLDER/first_contact.jsonl, on disk before the next task begins. A second
run skips what a line says is in order; ``--again WORD`` repeats the tasks with WORD in their name.
Nothing begins that the time left cannot hold.

In order: the build in the background (``--install``), with the cost of a barrier and ``nn.LSTM``
alone in the meantime; both passes beside float64, the kernels with several blocks first; 100
repeats that must have the same bits; a CUDA graph; threads; at the same time the tests marked
``gpu`` and compute-sanitizer; times of the sizes that matter; the cost of a launch before its first
step; other layouts. FOLDER also has ``logs.txt``, the outputs; ``report.txt``, the tables; and
``measured.txt``, the entry for fastlstm/backends/gpu/timings.py. ``--plant`` begins with tasks that
go wrong on purpose.
"""

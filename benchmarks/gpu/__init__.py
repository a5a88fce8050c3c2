"""Benchmark scripts for a GPU, in the order in which to run them on a new one.

    python -m benchmarks.gpu.first_contact --out results   1. all that matters once
    python -m benchmarks.gpu.compare --out results   2. compare with nn.LSTM and the modelled floor
    python -m benchmarks.gpu.tune    --out results   3. compare the chosen layout with all others
    python -m benchmarks.gpu.models  --out results   4. time whole models and very long sequences
    python -m benchmarks.gpu.paper   --out results   5. train the paper's Moving MNIST model briefly

Each script ends within ten minutes and writes its rows to a JSON file as they are measured, with a
description of the GPU. Results belong in benchmarks/results/NAME OF THE GPU. With ``--device cpu
--small`` a script runs on any machine, to test the script itself; its numbers mean nothing.

All but ``paper`` measure in a process that may hang, crash or lose the GPU: :mod:`watcher` starts
another one for what comes next.
"""

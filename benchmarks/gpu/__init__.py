"""One script for each question to a GPU, in the order in which they are asked of a new one.

    python -m benchmarks.gpu.runs    --out results   1. does everything run, and is it right?
    python -m benchmarks.gpu.compare --out results   2. how fast, beside nn.LSTM and the floor?
    python -m benchmarks.gpu.tune    --out results   3. is the layout that is chosen the fastest?
    python -m benchmarks.gpu.models  --out results   4. whole models, and very long sequences
    python -m benchmarks.gpu.paper   --out results   5. Moving MNIST as in the paper, in ten minutes

Each ends within ten minutes, writes JSON as it goes (what was measured stays, whatever happens
next) and says what it ran on. Results are kept in benchmarks/results/NAME OF THE GPU. `--device cpu
--small` tries the script itself anywhere; its numbers mean nothing.
"""

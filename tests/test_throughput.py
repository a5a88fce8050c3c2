"""Throughput counts what training takes, and how much of it is the wait for data."""

import types

import pytest
from lightning.pytorch import Callback
from tiny_training import SIDE, tiny_model, trainer

from fastlstm.training import MovingMNISTData, Throughput, VideoTask


@pytest.mark.parametrize("profiler", [None, "simple"])
def test_throughput_and_the_wait_for_data_outside_validation(tmp_path, monkeypatch, profiler):
    clock = [0.0]

    class SlowData(MovingMNISTData):
        def _batch(self, videos):
            clock[0] += 1
            return super()._batch(videos)

    class Work(Callback):
        def on_train_batch_start(self, *args):
            clock[0] += 3

        def on_validation_end(self, *args):
            clock[0] += 100

    throughput = Throughput("sequences", lambda batch: batch.frames.shape[1])
    assert throughput.summary() == ""
    options = {"max_steps": 4, "val_check_interval": 2, "limit_val_batches": 1}
    t = trainer(tmp_path, throughput, Work(), profiler=profiler, **options)
    sizes = {"batch_size": 4, "input_frames": 3, "future_frames": 4, "val_size": 4}
    data = SlowData(num_digits=1, size=SIDE, **sizes)
    progress = "fastlstm.training.callbacks.progress"
    with monkeypatch.context() as patch:
        patch.setattr(f"{progress}.time", types.SimpleNamespace(perf_counter=lambda: clock[0]))
        t.fit(VideoTask(tiny_model()), datamodule=data)
    # validation after the second step: the second and the fourth step are counted
    assert throughput.per_second == pytest.approx(2 * 4 / (4.0 + 4.0))
    words, logged = ", 1 training sequences/s", t.callback_metrics.get("train/data_wait")
    if profiler is None:
        assert throughput.data_wait == pytest.approx(0.25) == float(logged)
        assert throughput.summary() == f"{words}, 25% of the time waiting for data"
    else:  # the user's own profiler says it
        assert throughput.data_wait is None is logged
        assert throughput.summary() == words

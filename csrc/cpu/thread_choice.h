// The number of threads of short calls on a machine whose cores other programs use too.
#pragma once

#include <chrono>

namespace fastlstm::cpu {

// How many threads the next call runs on. While other programs keep the cores busy, a thread may
// wait for a time slice, 4 ms or more, and the others with it: at H = 256 a step took 16 ms where
// one thread needs 24 us. After such a call the next ones run on one thread, 16 at first, and twice
// as many each time that the next try stalls too. It is for calls whose results do not depend on
// the number of threads.
class ThreadChoice {
 public:
  void set_most(int most) { most_ = most; }
  int most() const { return most_; }
  int next() const { return alone_ ? 1 : most_; }

  // Runs `body` and watches how long it takes. `expected` is about what one thread takes.
  template <class Body>
  void watch(double expected_microseconds, const Body& body) {
    if (most_ == 1) return body();
    if (alone_) {
      --alone_;
      return body();
    }
    const auto start = std::chrono::steady_clock::now();
    body();
    const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - start;
    if (took.count() > 1000 + 10 * expected_microseconds) {
      alone_ = back_off_;
      back_off_ = 2 * back_off_ < kMostCalls ? 2 * back_off_ : kMostCalls;
    } else {
      back_off_ = kFewestCalls;
    }
  }

 private:
  static constexpr int kFewestCalls = 16, kMostCalls = 1 << 16;
  int most_ = 1, alone_ = 0, back_off_ = kFewestCalls;
};

}  // namespace fastlstm::cpu

// What a backward pass reads of the forward pass, the reserve and h: in the caller's memory, or,
// where only the state before every k-th step was kept, in steps that run once more.
//
// They run k at a time, from the last ones to the first, as the blocks of the backward pass come to
// need them. The blocks, and with them the order of all sums, do not depend on k.
#pragma once

#include "forward.h"

namespace fastlstm::cpu {
namespace {

template <class S>
class Recomputation : Arrays<S> {
  using Arrays<S>::in, Arrays<S>::row_of, Arrays<S>::shape_, Arrays<S>::hidden_size_;

 public:
  // `block` is the number of steps in a block of the backward pass. All of one must be there, and
  // the step before it, which may be the last of its k.
  Recomputation(const LstmBackward& call, int num_threads, int64_t block, Workspace& workspace)
      : Arrays<S>(call.shape),
        call_(call),
        every_(lesser(shape_.checkpoint_every, shape_.T)),
        again_(forward_call(call)),
        forward_(in_workspace(num_threads, block + every_, workspace)) {}

  // A barrier must follow.
  void prepare(Team& team) const {
    if (every_) as_forward(team, [&](Team& mine) { forward_.prepare(mine); });
  }

  // Sees to it that step s and the later ones are there, as far as a block reaches, in the order of
  // the forward pass. `begin` is the first that is there; returns what is now.
  int64_t reach(Team& team, int64_t s, int64_t begin) const {
    if (every_ == 0) return 0;
    while (begin > s) {
      const Range steps = {(begin - 1) / every_ * every_, begin};
      as_forward(team, [&](Team& mine) { forward_.recompute(mine, steps); });
      team.barrier();
      begin = steps.begin;
    }
    return begin;
  }

  // (5H) and (P) of a row of the batch at time t.
  const S* reserve(int64_t t, int64_t b, int64_t g) const {
    return every_ ? forward_.reserve(t, b, g) : in(call_.reserve) + row_of(t, b, g) * 5 * shape_.H;
  }
  const S* h(int64_t t, int64_t b, int64_t g) const {
    return every_ ? forward_.h(t, b, g) : in(call_.y) + row_of(t, b, g) * hidden_size_;
  }

 private:
  static LstmForward forward_call(const LstmBackward& call) {
    LstmForward again{};
    static_cast<LstmCall&>(again) = call;
    again.y = const_cast<void*>(call.y);  // is only read, as checkpoints are
    again.checkpoints = const_cast<void*>(call.checkpoints);
    return again;
  }

  // The steps themselves, whose workspace is a piece of the call's.
  Forward<S> in_workspace(int num_threads, int64_t steps, Workspace& workspace) {
    if (every_) {
      const size_t bytes = Forward<S>(again_, num_threads, steps).workspace_bytes();
      again_.workspace = workspace.take<char>(static_cast<int64_t>(bytes));
    }
    return Forward<S>(again_, num_threads, steps);
  }

  // Calls run(team) on as many threads as the forward pass had: where it had one, so has this.
  template <class Run>
  void as_forward(Team& team, const Run& run) const {
    if (forward_.threads() > 1) return run(team);
    Team alone(nullptr, 0, 1);
    if (team.thread() == 0) run(alone);
  }

  const LstmBackward& call_;
  const int64_t every_;  // k, or 0
  LstmForward again_;
  const Forward<S> forward_;
};

}  // namespace
}  // namespace fastlstm::cpu

// The reserve and h that a backward pass reads: from the caller's memory, or, if the forward pass
// saved checkpoints instead, from steps that are recomputed.
//
// Steps are recomputed k at a time, from the last to the first, when a block of the backward pass
// needs them. The blocks, and so the order of all sums, do not depend on k.
#pragma once

#include "forward.h"

namespace fastlstm::cpu {
namespace {

template <class S>
class Recomputation : Arrays<S> {
  using Arrays<S>::in, Arrays<S>::row_of, Arrays<S>::shape_, Arrays<S>::hidden_size_;

 public:
  // `block` is the number of steps in a block of the backward pass. The workspace has room for a
  // block, for the step before it, and for the k - 1 steps that are recomputed with that one.
  Recomputation(const LstmBackward& call, int num_threads, int64_t block, Workspace& workspace)
      : Arrays<S>(call.shape),
        call_(call),
        every_(lesser(shape_.checkpoint_every, shape_.T)),
        again_(forward_call(call)),
        forward_(in_workspace(num_threads, block + every_, workspace)) {}

  // A barrier must follow.
  void prepare(Team& team) const {
    if (!every_) return;
    as_forward(team, [&](Team& mine) {
      forward_.progress()[team.thread()] = {};
      forward_.prepare(mine);
    });
  }

  // Recomputes steps, in the order of the forward pass, until step s is in the workspace. `begin`
  // is the first step that is there before; returns the first one that is there afterwards.
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

  // The reserve (5H) and h (P) of a row of the batch at time t.
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
    again.y = const_cast<void*>(call.y);  // both are only read
    again.checkpoints = const_cast<void*>(call.checkpoints);
    return again;
  }

  // The forward pass that recomputes the steps. Its workspace is a part of this call's.
  Forward<S> in_workspace(int num_threads, int64_t steps, Workspace& workspace) {
    if (every_) {
      const size_t bytes = Forward<S>(again_, num_threads, steps).workspace_bytes();
      again_.workspace = workspace.take<char>(static_cast<int64_t>(bytes));
    }
    return Forward<S>(again_, num_threads, steps);
  }

  // Calls run(team) on as many threads as the forward pass would use, so that it gives the same
  // bits. They are a team with barriers of its own.
  template <class Run>
  void as_forward(Team& team, const Run& run) const {
    if (team.thread() >= forward_.threads()) return;
    Team mine(forward_.progress(), team.thread(),
              static_cast<int>(lesser(forward_.threads(), team.size())));
    run(mine);
  }

  const LstmBackward& call_;
  const int64_t every_;  // k, or 0
  LstmForward again_;
  const Forward<S> forward_;
};

}  // namespace
}  // namespace fastlstm::cpu

// The states h and c of a call: the first ones, the checkpoints, and the last ones.
#pragma once

#include "ring_buffer.h"

namespace fastlstm::cpu {
namespace {

template <class S>
class States : Arrays<S> {
  using Arrays<S>::in, Arrays<S>::out, Arrays<S>::time_of, Arrays<S>::state,
      Arrays<S>::for_each_vector, Arrays<S>::shape_, Arrays<S>::hidden_size_, Arrays<S>::order_;
  using V = Simd<Sum<S>>;
  static constexpr int kUnits = kLanes<S>;

 public:
  States(const LstmForward& call, const HiddenStates<S>& h, Workspace& workspace)
      : Arrays<S>(call.shape),
        call_(call),
        h_(h),
        c_(workspace.take<Sum<S>>(shape_.G * shape_.B * shape_.H)) {}

  // Sets the order of the rows, which is that of Forward.
  void read_in(int64_t* order) { order_ = order; }
  // (H) the present c of a row.
  Sum<S>* c(int64_t g, int64_t b) const { return c_ + state(g, b) * shape_.H; }

  void start(const Tile& tile) const {
    for_each_vector(tile, kUnits, shape_.H, [&](int64_t b, int64_t unit, auto lanes) {
      const S* cx = in(call_.cx) + state(tile.group, b) * shape_.H;
      V::store(c(tile.group, b) + unit, V::load(cx + unit, lanes), lanes);
    });
  }

  // Whether there is a checkpoint before step s.
  bool is_checkpoint(int64_t s) const {
    return call_.checkpoints && s % shape_.checkpoint_every == 0;
  }
  void save_checkpoint(const Tile& tile, int64_t s) const {
    const int64_t g = tile.group, t = time_of(g, s);
    for_each_vector(tile, kUnits, shape_.H, [&](int64_t b, int64_t unit, auto lanes) {
      V::store(checkpoint_c(s, g, b) + unit, V::load(c(g, b) + unit, lanes), lanes);
    });
    for_each_vector(whole_h(tile), kUnits, hidden_size_, [&](int64_t b, int64_t at, auto lanes) {
      const RowSteps row_steps(shape_, g, b);
      const bool goes_on = row_steps.has_step(t) && t != row_steps.first();
      const S* h =
          goes_on ? h_.at(row_steps.before(t), b, g) : in(call_.hx) + state(g, b) * hidden_size_;
      V::store(checkpoint_h(s, g, b) + at, V::load(h + at, lanes), lanes);
    });
  }

  // Restores the checkpoint before step s: c, and h, unless it is in y.
  void restore(const Tile& tile, int64_t s) const {
    const int64_t g = tile.group;
    for_each_vector(tile, kUnits, shape_.H, [&](int64_t b, int64_t unit, auto lanes) {
      V::store(c(g, b) + unit, V::load(checkpoint_c(s, g, b) + unit, lanes), lanes);
    });
    if (h_.in_y() || s == 0) return;
    for_each_vector(whole_h(tile), kUnits, hidden_size_, [&](int64_t b, int64_t at, auto lanes) {
      S* h = h_.at(time_of(g, s - 1), b, g);
      V::store(h + at, V::load(checkpoint_h(s, g, b) + at, lanes), lanes);
    });
  }

  // Writes hy for a tile whose panels are `width` numbers of h wide.
  void store_hy(const Tile& tile, int64_t width) const {
    for_each_vector(tile, width, hidden_size_, [&](int64_t b, int64_t column, auto lanes) {
      const RowSteps row_steps(shape_, tile.group, b);
      const int64_t at = state(tile.group, b) * hidden_size_ + column;
      const S* h = row_steps.length > 0 ? h_.at(row_steps.last(), b, tile.group) + column
                                        : in(call_.hx) + at;
      V::store(out(call_.hy) + at, V::load(h, lanes), lanes);
    });
  }

  void store_cy(const Tile& tile) const {
    for_each_vector(tile, kUnits, shape_.H, [&](int64_t b, int64_t unit, auto lanes) {
      S* cy = out(call_.cy) + state(tile.group, b) * shape_.H;
      V::store(cy + unit, V::load(c(tile.group, b) + unit, lanes), lanes);
    });
  }

 private:
  Sum<S>* checkpoint_h(int64_t s, int64_t g, int64_t b) const {
    const int64_t states = s / shape_.checkpoint_every * shape_.G * shape_.B + state(g, b);
    return static_cast<Sum<S>*>(call_.checkpoints) + states * (hidden_size_ + shape_.H);
  }
  Sum<S>* checkpoint_c(int64_t s, int64_t g, int64_t b) const {
    return checkpoint_h(s, g, b) + hidden_size_;
  }

  // All columns of h for the tile with panel 0, and none for the other tiles with the same rows.
  Tile whole_h(const Tile& tile) const {
    const int64_t panels = tile.panels.begin == 0 ? ceil_div(hidden_size_, kUnits) : 0;
    return {tile.group, tile.rows, {0, panels}, 0};
  }

  const LstmForward& call_;
  const HiddenStates<S>& h_;
  Sum<S>* const c_;
};

}  // namespace
}  // namespace fastlstm::cpu

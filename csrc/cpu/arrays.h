// Where the numbers of a call lie: its arrays with their type, what belongs to a row of the batch
// in them, and the vectors of gates in such a row. Both passes read and write memory through this.
#pragma once

#include "schedule.h"

namespace fastlstm::cpu {
namespace {

// The four gates of a vector of hidden units in a row (4H), and the three peepholes in one of (3H).
template <class V, class Item, class Lanes>
FASTLSTM_INLINE Gates<typename V::Value> load_gates(const Item* from, int64_t H, Lanes lanes) {
  return {V::load(from, lanes), V::load(from + H, lanes), V::load(from + 2 * H, lanes),
          V::load(from + 3 * H, lanes)};
}
template <class V, class Item, class Lanes>
FASTLSTM_INLINE void store_gates(Item* to, int64_t H, const Gates<typename V::Value>& gates,
                                 Lanes lanes) {
  V::store(to, gates.i, lanes);
  V::store(to + H, gates.f, lanes);
  V::store(to + 2 * H, gates.g, lanes);
  V::store(to + 3 * H, gates.o, lanes);
}
template <class V, class Item, class Lanes>
FASTLSTM_INLINE Peepholes<typename V::Value> load_peepholes(const Item* from, int64_t H,
                                                            Lanes lanes) {
  return {V::load(from, lanes), V::load(from + H, lanes), V::load(from + 2 * H, lanes)};
}

// The base of what computes on a call's arrays.
template <class S>
class Arrays {
 protected:
  explicit Arrays(const LstmShape& shape) : shape_(shape) {}

  static const S* in(const void* pointer) { return static_cast<const S*>(pointer); }
  static S* out(void* pointer) { return static_cast<S*>(pointer); }
  static const S* of_group(const LstmWeight& weight, int64_t group) {
    return in(weight.data) + group * weight.stride;
  }

  // The time of step s in the order of the forward pass; or, from its end, of the backward pass.
  int64_t time_of(int64_t group, int64_t s) const {
    return shape_.reverse[group] ? shape_.T - 1 - s : s;
  }
  int64_t time_from_end(int64_t group, int64_t s) const {
    return shape_.reverse[group] ? s : shape_.T - 1 - s;
  }

  // A row of the batch at time t, in an array (T, B, G, ...) with strides: numbers before it; and
  // in a contiguous one: rows before it. At no time, in an array (G, B, H): numbers before it.
  static int64_t offset(const int64_t* stride, int64_t t, int64_t b, int64_t g) {
    return t * stride[0] + b * stride[1] + g * stride[2];
  }
  int64_t row_of(int64_t t, int64_t b, int64_t g) const {
    return (t * shape_.B + b) * shape_.G + g;
  }
  int64_t state(int64_t g, int64_t b) const { return (g * shape_.B + b) * shape_.H; }

  // Calls visit(row of the batch, hidden unit, lanes) for every vector of the state of a tile whose
  // panels are `width` units wide.
  template <class Visit>
  void for_each_vector(const Tile& tile, int64_t width, const Visit& visit) const {
    for (int64_t b = tile.rows.begin; b < tile.rows.end; ++b) {
      for (int64_t unit = tile.panels.begin * width; unit < tile.panels.end * width;
           unit += kLanes<S>) {
        with_lanes<kLanes<S>>(unit, shape_.H, [&](auto lanes) { visit(b, unit, lanes); });
      }
    }
  }

  const LstmShape& shape_;
};

}  // namespace
}  // namespace fastlstm::cpu

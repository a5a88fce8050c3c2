// Addresses in the arrays of a call: rows of the batch at a step, and vectors of gates in a row.
// Both passes read and write memory through this.
#pragma once

#include "schedule.h"

namespace fastlstm::cpu {
namespace {

// Load and store a vector of each gate in a row (4H), and of each peephole in a row (3H).
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

// The base of the classes that compute on a call's arrays.
template <class S>
class Arrays {
 protected:
  explicit Arrays(const LstmShape& shape)
      : shape_(shape), hidden_size_(shape.P ? shape.P : shape.H) {}

  static const S* in(const void* pointer) { return static_cast<const S*>(pointer); }
  static S* out(void* pointer) { return static_cast<S*>(pointer); }
  static const S* of_group(const LstmWeight& weight, int64_t group) {
    return in(weight.data) + group * weight.stride;
  }

  // The time of step s, counted in the order of the forward pass, or in that of the backward pass.
  int64_t time_of(int64_t group, int64_t s) const {
    return shape_.reverse[group] ? shape_.T - 1 - s : s;
  }
  int64_t time_from_end(int64_t group, int64_t s) const {
    return shape_.reverse[group] ? s : shape_.T - 1 - s;
  }

  // The offset of row b at time t: in numbers, in an array (T, B, G, ...) with strides; in rows, in
  // a contiguous one; and in rows, in an array (G, B, ...) without time.
  int64_t offset(const int64_t* stride, int64_t t, int64_t b, int64_t g) const {
    const int64_t row =
        shape_.first_row ? (shape_.first_row[t] + b) * stride[1] : t * stride[0] + b * stride[1];
    return row + g * stride[2];
  }
  int64_t row_of(int64_t t, int64_t b, int64_t g) const {
    const int64_t row = shape_.first_row ? shape_.first_row[t] : t * shape_.B;
    return (row + b) * shape_.G + g;
  }
  int64_t state(int64_t g, int64_t b) const { return g * shape_.B + b; }

  // The row of the batch at a place of a tile; after prepare_order.
  int64_t row(int64_t place) const { return order_ ? order_[place] : place; }
  void prepare_order(const Team& team, const Plan& plan) const {
    if (order_ && team.thread() == 0) {
      balance_rows(shape_.by_length, shape_.B, plan.row_parts(), order_);
    }
  }

  // Calls visit(row of the batch, column, lanes) for every vector in a tile's part of an array
  // (G, B, columns). A panel of the tile is `width` columns.
  template <class Visit>
  void for_each_vector(const Tile& tile, int64_t width, int64_t columns, const Visit& visit) const {
    for (int64_t place = tile.rows.begin; place < tile.rows.end; ++place) {
      for (int64_t column = tile.panels.begin * width; column < tile.panels.end * width;
           column += kLanes<S>) {
        with_lanes<kLanes<S>>(column, columns,
                              [&](auto lanes) { visit(row(place), column, lanes); });
      }
    }
  }

  const LstmShape& shape_;
  const int64_t hidden_size_;  // numbers of h
  int64_t* order_ = nullptr;   // (B) the order of the rows, or null: 0, 1, 2 ...
};

}  // namespace
}  // namespace fastlstm::cpu

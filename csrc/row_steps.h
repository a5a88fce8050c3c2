// The steps of one row of the batch in one group, for a CPU or a GPU.
#pragma once

#include "cell.h"
#include "lstm.h"

namespace fastlstm {
namespace {

// First, last, before and after are in the order of the forward pass; a time t is an index of T.
struct RowSteps {
  int64_t length;
  bool reverse;
  const uint8_t* reset;  // of this row: at step t it is reset[t * rows]
  int64_t rows;

  FASTLSTM_INLINE RowSteps(const LstmShape& shape, int64_t group, int64_t row)
      : RowSteps(shape, row, shape.reverse[group], shape.lengths ? shape.lengths[row] : shape.T) {}
  template <class Shape>
  FASTLSTM_INLINE RowSteps(const Shape& shape, int64_t row, bool reverse, int64_t length)
      : length(length),
        reverse(reverse),
        reset(shape.reset ? shape.reset + row : nullptr),
        rows(shape.B) {}

  FASTLSTM_INLINE bool has_step(int64_t t) const { return t < length; }
  FASTLSTM_INLINE int64_t first() const { return reverse ? length - 1 : 0; }
  FASTLSTM_INLINE int64_t last() const { return reverse ? 0 : length - 1; }
  FASTLSTM_INLINE int64_t before(int64_t t) const { return reverse ? t + 1 : t - 1; }
  FASTLSTM_INLINE int64_t after(int64_t t) const { return reverse ? t - 1 : t + 1; }
  // Whether step t starts from a zero state, and not from that of the step before or hx and cx.
  FASTLSTM_INLINE bool is_reset(int64_t t) const {
    const int64_t border = reverse ? t + 1 : t;
    return reset && border < length && reset[border * rows];
  }
};

}  // namespace
}  // namespace fastlstm

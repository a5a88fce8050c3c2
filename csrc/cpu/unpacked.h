// Products of a few rows with weights as they lie. Packing a weight reads it too, and pays only if
// many rows are multiplied with it.
#pragma once

#include "products.h"
#include "schedule.h"
#include "transpose.h"

namespace fastlstm::cpu {
namespace {

// The most rows of one dot product: sums of 4 gates for each of them, and a vector of each gate's
// weight, stay in registers.
constexpr int kDotRows = kColumns == 4 ? 6 : 3;

// Vectors of neighbours in depth, and their products.
template <class S>
struct Dot {
  using V = Simd<Sum<S>>;
  using Items = typename V::Value;
  static constexpr int kItems = V::kLanes;

  template <class Lanes>
  static FASTLSTM_INLINE Items load(const S* from, Lanes lanes) {
    return V::load(from, lanes);
  }
  static FASTLSTM_INLINE void multiply_add(typename V::Value& sum, Items a, Items b) {
    sum += a * b;
  }
};

#if defined(__AVX512BF16__) && !defined(FASTLSTM_VECTOR_BYTES)
// A lane adds up the products of two neighbours.
template <>
struct Dot<BFloat16> {
  using Items = __m512i;
  static constexpr int kItems = 32;

  static FASTLSTM_INLINE Items load(const BFloat16* from, AllLanes) {
    return _mm512_loadu_si512(from);
  }
  static FASTLSTM_INLINE Items load(const BFloat16* from, SomeLanes lanes) {
    return _mm512_maskz_loadu_epi16((1u << lanes.count) - 1, from);
  }
  static FASTLSTM_INLINE void multiply_add(Simd<float>::Value& sum, Items a, Items b) {
    sum = (Simd<float>::Value)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
  }
};
#endif

// The dot products of `units` hidden units for each row and gate, not yet summed over the lanes:
// sums[row][gate][unit] = or +=.
template <class S, int kRows>
__attribute__((noinline)) void dot_rows(const S* weight, int64_t gate_stride, int64_t units,
                                        int64_t depth, const S* const* rows, bool add,
                                        typename Simd<Sum<S>>::Value (*sums)[4][kLanes<S>]) {
  using Value = typename Simd<Sum<S>>::Value;
  for (int64_t unit = 0; unit < units; ++unit, weight += depth) {
    Value sum[4][kRows] = {};
    const auto multiply_add = [&](int64_t k, auto lanes) {
      typename Dot<S>::Items x[kRows];
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r) x[r] = Dot<S>::load(rows[r] + k, lanes);
#pragma GCC unroll 4
      for (int gate = 0; gate < 4; ++gate) {
        const auto w = Dot<S>::load(weight + gate * gate_stride + k, lanes);
#pragma GCC unroll 6
        for (int r = 0; r < kRows; ++r) Dot<S>::multiply_add(sum[gate][r], x[r], w);
      }
    };
    int64_t k = 0;
    for (; k + Dot<S>::kItems <= depth; k += Dot<S>::kItems) multiply_add(k, AllLanes{});
    if (k < depth) multiply_add(k, SomeLanes{static_cast<int32_t>(depth - k)});
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int gate = 0; gate < 4; ++gate) {
        Value& to = sums[r][gate][unit];
        to = add ? to + sum[gate][r] : sum[gate][r];
      }
    }
  }
}

// A weight (4H, depth); none if `depth` is 0.
template <class S>
struct GateWeight {
  const S* data;
  int64_t depth;
};

// The gate sums c(i) of one vector of hidden units, from `unit` on, = or += the rows row(i, 0) and
// row(i, 1) times the two weights, transposed. A weight is read once for kDotRows rows. The lanes
// of all units of the vector are summed together.
template <class S, class RowAt, class SumsAt>
void dot_gates(const GateWeight<S> (&weights)[2], int64_t H, int64_t unit, int64_t count, bool add,
               const RowAt& row, const SumsAt& c) {
  using V = Simd<Sum<S>>;
  const int64_t units = lesser(kLanes<S>, H - unit), blocks = ceil_div(count, kDotRows);
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t first = count * block / blocks, end = count * (block + 1) / blocks;
    typename V::Value sums[kDotRows][4][kLanes<S>];
    bool adds = false;
    for (int i = 0; i < 2; ++i) {
      const S* const data = weights[i].data;
      const int64_t depth = weights[i].depth;
      if (depth == 0) continue;
      const S* rows[kDotRows];
      for (int64_t r = first; r < end; ++r) rows[r - first] = row(r, i);
      const auto dot = [&](auto size) {
        dot_rows<S, decltype(size)::value>(data + unit * depth, H * depth, units, depth, rows, adds,
                                           sums);
      };
      with_count<kDotRows>(static_cast<int>(end - first), dot);
      adds = true;
    }
    for (int64_t r = first; r < end; ++r) {
      Sum<S>* to = c(r);
      for (int gate = 0; gate < 4; ++gate, to += V::kLanes) {
        typename V::Value* lanes = sums[r - first][gate];
        for (int64_t u = units; u < kLanes<S>; ++u) lanes[u] = typename V::Value{};
        sum_lanes<Sum<S>>(lanes);
        V::store(to, add ? lanes[0] + V::load(to, AllLanes{}) : lanes[0], AllLanes{});
      }
    }
  }
}

// Rows that lie `stride` numbers apart.
template <class Item>
struct RowsOf {
  Item* data;
  int64_t stride;

  FASTLSTM_INLINE Item* operator[](int64_t i) const { return data + i * stride; }
  RowsOf from(int64_t column) const { return {data + column, stride}; }
};

// Rows of a weight that multiply_unpacked reads at a time.
constexpr int kRowsAtOnce = 8;
// Bytes of sums that stay in L1 meanwhile.
constexpr int64_t kSumBytes = 16 * 1024;

// For `count` rows: to (columns) = or += row (depth) x weight (depth, columns). The weight is read
// kRowsAtOnce rows at a time, from end to end unless there are too many sums. `to` has room for
// whole vectors, and `factors` for kRowsAtOnce numbers of each row.
template <class S>
void multiply_unpacked(const S* weight, int64_t columns, int64_t depth, RowsOf<const S> rows,
                       int64_t count, Sum<S>* factors, RowsOf<Sum<S>> to, bool add) {
  using V = Simd<Sum<S>>;
  using Value = typename V::Value;
  const int64_t width = ceil_div(kSumBytes, count * kVectorBytes) * V::kLanes;
  for (int64_t first = 0; first < columns; first += width) {
    const int64_t last = lesser(first + width, columns);
    for (int64_t k = 0; k < depth; k += kRowsAtOnce) {
      const int64_t here = lesser(kRowsAtOnce, depth - k);
      for (int64_t i = 0; i < count; ++i) {
        for (int64_t r = 0; r < kRowsAtOnce; ++r) {
          factors[i * kRowsAtOnce + r] = r < here ? number(rows[i][k + r]) : Sum<S>{};
        }
      }
      const bool adds = add || k > 0;
      for (int64_t column = first; column < last; column += V::kLanes) {
        with_lanes<V::kLanes>(column, columns, [&](auto lanes) {
          Value w[kRowsAtOnce];
#pragma GCC unroll 8
          for (int r = 0; r < kRowsAtOnce; ++r) {
            w[r] = V::load(weight + (k + (r < here ? r : 0)) * columns + column, lanes);
          }
          const Sum<S>* factor = factors;
          Sum<S>* sums = to.data + column;
          for (int64_t i = 0; i < count; ++i, factor += kRowsAtOnce, sums += to.stride) {
            Value even = factor[0] * w[0], odd = factor[1] * w[1];
#pragma GCC unroll 4
            for (int r = 2; r < kRowsAtOnce; r += 2) {
              even += factor[r] * w[r];
              odd += factor[r + 1] * w[r + 1];
            }
            const Value sum = even + odd;
            V::store(sums, adds ? sum + V::load(sums, AllLanes{}) : sum, AllLanes{});
          }
        });
      }
    }
  }
}

// weight (rows, columns) = left^T right, for `count` rows of both. The weight is written from end
// to end, a few rows at a time. `factors` has room for kRowsAtOnce numbers of each row.
template <class S>
void multiply_transposed(RowsOf<const S> left, RowsOf<const S> right, int64_t count, int64_t rows,
                         int64_t columns, Sum<S>* factors, Sum<S>* weight) {
  using V = Simd<Sum<S>>;
  const auto write_rows = [&](int64_t first, auto size) {
    constexpr int kRows = decltype(size)::value;
    for (int64_t i = 0; i < count; ++i) {
      for (int r = 0; r < kRows; ++r) factors[i * kRows + r] = number(left[i][first + r]);
    }
    Sum<S>* to = weight + first * columns;
    for (int64_t column = 0; column < columns; column += V::kLanes) {
      with_lanes<V::kLanes>(column, columns, [&](auto lanes) {
        typename V::Value sum[kRows] = {};
        const Sum<S>* factor = factors;
        const S* from = right.data + column;
        for (int64_t i = 0; i < count; ++i, factor += kRows, from += right.stride) {
          const auto x = V::load(from, lanes);
#pragma GCC unroll 8
          for (int r = 0; r < kRows; ++r) sum[r] += factor[r] * x;
        }
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) V::store(to + r * columns + column, sum[r], lanes);
      });
    }
  };
  for (int64_t row = 0; row < rows; row += kRowsAtOnce) {
    with_count<kRowsAtOnce>(static_cast<int>(lesser(kRowsAtOnce, rows - row)),
                            [&](auto size) { write_rows(row, size); });
  }
}

// Whether weights are read as they lie, and not packed: if T times B is small. Both take as long
// at 16 rows with H = 128 and 256, and at 32 rows if packed weights do not fit in the cache
// (4,200 x 1,055 with 22 rows: 3.8 ms against 4.2 packed). For bfloat16 the limit is 6 rows,
// because its dot products take two multiply-adds in float.
template <class S>
bool streams(const LstmShape& shape) {
  if (std::is_same_v<S, BFloat16>) return shape.T * shape.B <= 6;
  const int64_t bytes = 4 * shape.H * (shape.I + shape.H) * int64_t{sizeof(S)};
  return shape.T * shape.B <= (bytes > 8 * 1024 * 1024 ? 32 : 16);
}

}  // namespace
}  // namespace fastlstm::cpu

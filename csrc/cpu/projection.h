// The projection of the forward pass: h = W_hr m, where m is the output of the cell.
#pragma once

#include "arrays.h"
#include "products.h"
#include "ring_buffer.h"

namespace fastlstm::cpu {
namespace {

template <class S>
class OutputProjection : Arrays<S> {
  using Arrays<S>::of_group, Arrays<S>::time_of, Arrays<S>::row, Arrays<S>::state,
      Arrays<S>::shape_, Arrays<S>::order_;
  using V = Simd<Sum<S>>;
  static constexpr int kWidth = kStripWidth<S>;

  struct Row {
    const S* hidden;  // (H)
    S* y;             // (P)
  };

 public:
  OutputProjection(const LstmForward& call, const HiddenStates<S>& h, int threads,
                   Workspace& workspace)
      : Arrays<S>(call.shape),
        call_(call),
        h_(h),
        strips_(ceil_div(shape_.P, kWidth)),
        hidden_(workspace.take<S>(shape_.P ? shape_.G * shape_.B * shape_.H : 0)),
        rows_(workspace.take<Row>(shape_.P ? threads * shape_.B : 0)),
        sums_(workspace.take<Sum<S>>(shape_.P ? threads * shape_.B * kWidth : 0)),
        weight_hr_(workspace.take<Word<S>>(shape_.G * strips_ * strip_words<S>(shape_.H))) {}

  // The number of strips of P, in each group.
  int64_t strips() const { return strips_; }
  // (H) m of a row, which the cell writes.
  S* hidden(int64_t g, int64_t b) const { return hidden_ + state(g, b) * shape_.H; }
  // Sets the order of the rows, which is that of Forward.
  void read_in(int64_t* order) { order_ = order; }

  void prepare(const Team& team) const {
    const Range mine = share(shape_.G * strips_, team.thread(), team.size());
    for (int64_t i = mine.begin; i < mine.end; ++i) {
      pack_columns(of_group(call_.weight_hr, i / strips_), shape_.P, shape_.H, i % strips_ * kWidth,
                   weight_hr_ + i * strip_words<S>(shape_.H));
    }
  }

  // Computes h at step s for a tile whose panels are strips of P.
  void step(const Tile& tile, int64_t s, int thread) const {
    Row* rows = rows_ + thread * shape_.B;
    const int64_t count = visit_rows(tile, time_of(tile.group, s), rows);
    Sum<S>* sums = sums_ + thread * shape_.B * kWidth;
    for (int64_t strip = tile.panels.begin; strip < tile.panels.end; ++strip) {
      const Word<S>* weight =
          weight_hr_ + (tile.group * strips_ + strip) * strip_words<S>(shape_.H);
      const int64_t first = strip * kWidth;
      for (int64_t k = 0; k < shape_.H; k += kChunk<S>) {
        const Strips<S> part = {weight, 0, nullptr, shape_.P - first, words_of<S>(k)};
        multiply_strips(
            part, 1, count, lesser(kChunk<S>, shape_.H - k), k > 0, nullptr,
            [&](int64_t i) { return Operand<S>{rows[i].hidden + k, sums + i * kWidth}; });
      }
      for (int v = 0; v < kColumns; ++v) {
        const int64_t column = first + v * V::kLanes;
        with_lanes<V::kLanes>(column, shape_.P, [&](auto lanes) {
          for (int64_t i = 0; i < count; ++i) {
            const Sum<S>* from = sums + i * kWidth + v * V::kLanes;
            V::store(rows[i].y + column, V::load(from, AllLanes{}), lanes);
          }
        });
      }
    }
  }

 private:
  // Lists the rows that have a step at time t. y of the others is set to zero, if it has a place.
  int64_t visit_rows(const Tile& tile, int64_t t, Row* rows) const {
    const int64_t first = tile.panels.begin * kWidth;
    const int64_t columns = lesser(tile.panels.end * kWidth, shape_.P) - first;
    int64_t count = 0;
    for (int64_t place = tile.rows.begin; place < tile.rows.end; ++place) {
      const int64_t g = tile.group, b = row(place);
      if (RowSteps(shape_, g, b).has_step(t)) {
        rows[count++] = {hidden(g, b), h_.at(t, b, g)};
      } else if (!shape_.first_row && h_.in_y()) {
        std::memset(static_cast<void*>(h_.at(t, b, g) + first), 0, columns * sizeof(S));
      }
    }
    return count;
  }

  const LstmForward& call_;
  const HiddenStates<S>& h_;
  const int64_t strips_;
  S* const hidden_;
  Row* const rows_;
  Sum<S>* const sums_;
  Word<S>* const weight_hr_;
};

}  // namespace
}  // namespace fastlstm::cpu

// Computes dx = digates W_ih, for a chunk of rows, in tasks.
#pragma once

#include "arrays.h"
#include "products.h"
#include "step_buffers.h"

namespace fastlstm::cpu {
namespace {

// Strips of W_ih that are multiplied with the same rows of digates: as many as fit in L2, because
// the rows are packed once for all of them.
constexpr int kInputStrips = 8;
// W_ih is packed once, and not again for every chunk, from T times B = this many rows on, and if it
// is small.
constexpr int64_t kPackRows = 1024;
constexpr int64_t kPackBytes = 2 * 1024 * 1024;
// Packed W_ih that stays in L3, so that parts of the rows can read it one after the other.
constexpr int64_t kL3WeightBytes = 8 * 1024 * 1024;
// Rows of a task of about 50 us; and the least, so that blocks of rows are nearly full.
constexpr int64_t kTaskRows = 64;
template <class S>
constexpr int64_t kFewestRows = greater(2 * kAlikeRows, kMaxRows<S>);

// dx of a chunk is final, unless groups share x.
template <class S>
class InputGradient : Arrays<S> {
  using Arrays<S>::out, Arrays<S>::of_group, Arrays<S>::offset, Arrays<S>::shape_;
  using V = Simd<Sum<S>>;
  using Value = typename V::Value;
  static constexpr int kWidth = kStripWidth<S>;
  static constexpr int64_t kMostRows = kChunk<S> + kMaxRows<S>;  // of a task: whole blocks of rows

  // How dx of a chunk is cut into tasks: parts of its rows times parts of the strips of W_ih.
  struct Cut {
    int64_t rows, strips;  // of the chunk, and of W_ih
    int64_t row_parts, strips_at_once;
    bool whole_blocks;  // whether the parts of the rows are whole blocks of kMaxRows

    int64_t tasks() const { return row_parts * ceil_div(strips, strips_at_once); }
    Range rows_of(int64_t task) const {
      if (!whole_blocks) return share(rows, task % row_parts, row_parts);
      const Range blocks = share(ceil_div(rows, kMaxRows<S>), task % row_parts, row_parts);
      return {blocks.begin * kMaxRows<S>, lesser(blocks.end * kMaxRows<S>, rows)};
    }
    Range strips_of(int64_t task) const {
      const int64_t first = task / row_parts * strips_at_once;
      return {first, lesser(first + strips_at_once, strips)};
    }
  };

 public:
  InputGradient(const LstmBackward& call, int threads, Workspace& workspace)
      : Arrays<S>(call.shape),
        call_(call),
        gates_(4 * shape_.H),
        strips_(ceil_div(shape_.I, kWidth)),
        packs_(shape_.T * shape_.B >= kPackRows ||
               gates_ * shape_.I * int64_t{sizeof(S)} <= kPackBytes),
        blocks_(
            workspace.take<Word<S>>(strips_ ? threads * kMostRows * block_words<S>(kChunk<S>) : 0)),
        weight_(workspace.take<Word<S>>(packs_
                                            ? shape_.G * strips_ * strip_words<S>(gates_)
                                            : threads * kInputStrips * strip_words<S>(kChunk<S>))),
        sums_(workspace.take<Sum<S>>(strips_ ? threads * kInputStrips * kWidth * kMostRows : 0)) {}

  // Whether dx is requested, and is not digates.
  bool is_requested() const { return call_.dinput && shape_.I; }
  // (I) dx of a row.
  S* row(int64_t t, int64_t b, int64_t g) const {
    return out(call_.dinput) + offset(call_.dinput_stride, t, b, g);
  }

  // Packs W_ih, and clears dx where it is summed up over groups or past a row's length. A barrier
  // must follow.
  void prepare(const Team& team) const {
    const auto pack = [&](int64_t i, Range rows) {
      const S* weight = of_group(call_.weight_ih, i / strips_) + rows.begin * shape_.I;
      const int64_t column = i % strips_ * kWidth;
      const int64_t width = vectors_of<S>(shape_.I - column) * V::kLanes;
      pack_rows<S>([&](int64_t k) { return weight + k * shape_.I; }, rows.end - rows.begin, column,
                   shape_.I, 1,
                   weight_ + i * strip_words<S>(gates_) + words_of<S>(rows.begin) * width);
    };
    if (packs_ && call_.dinput) {
      for_each_depth_part(shape_.G * strips_, gates_, team.thread(), team.size(), pack);
    }
    if (!is_requested() || !(adds() || shape_.lengths)) return;
    const Range steps = share(shape_.T, team.thread(), team.size());
    for (int64_t t = steps.begin; t < steps.end; ++t) {
      for (int64_t b = 0; b < shape_.B; ++b) {
        const bool visits = RowSteps(shape_, 0, b).has_step(t);
        if (visits ? !adds() : shape_.first_row != nullptr) continue;
        for (int64_t g = 0; g < (adds() ? 1 : shape_.G); ++g) {
          std::memset(static_cast<void*>(row(t, b, g)), 0, shape_.I * sizeof(S));
        }
      }
    }
  }

  // The number of tasks for a chunk of `rows` rows; they take longer than those of dweight.
  int64_t tasks(int64_t rows, int threads) const { return cut(rows, threads).tasks(); }
  void run(const Team& team, int64_t group, const Chunk<S>& chunk, int64_t task) const {
    const Cut parts = cut(chunk.count, team.size());
    multiply(team, group, chunk, parts.rows_of(task), parts.strips_of(task));
  }

 private:
  // A task has all rows if it packs its part of W_ih itself, or reads it from memory: at H = 2048
  // parts of 64 rows took 4% longer. But if threads would have no task without, there are more
  // parts, of so many rows that all give the same bits.
  Cut cut(int64_t rows, int threads) const {
    const int64_t weight_bytes = strips_ * strip_words<S>(gates_) * sizeof(Word<S>);
    const bool parts = packs_ && weight_bytes <= kL3WeightBytes;
    const int64_t strips = is_requested() && rows ? strips_ : 0;
    const int64_t enough = lesser(ceil_div(threads, greater(strips, 1)), rows / kFewestRows<S>);
    const int64_t usual = ceil_div(rows, parts ? kTaskRows : kChunk<S>);
    const int64_t row_parts = greater(greater(usual, enough), 1);
    const int64_t at_once = ceil_div(strips * row_parts, threads);
    return {rows, strips, row_parts, greater(lesser(at_once, kInputStrips), 1), usual >= enough};
  }

  // dx = or += digates W_ih, for some rows of a chunk and some strips.
  void multiply(const Team& team, int64_t group, const Chunk<S>& chunk, Range rows,
                Range strips) const {
    const S* weight = of_group(call_.weight_ih, group);
    const int64_t count = rows.end - rows.begin;
    const int size = static_cast<int>(strips.end - strips.begin);
    Word<S>* packed = weight_ + team.thread() * kInputStrips * strip_words<S>(kChunk<S>);
    Word<S>* blocks = blocks_ + team.thread() * kMostRows * block_words<S>(kChunk<S>);
    Sum<S>* sums = sums_ + team.thread() * kInputStrips * kWidth * kMostRows;
    const Word<S>* whole = weight_ + (group * strips_ + strips.begin) * strip_words<S>(gates_);
    for (int64_t k = 0; k < gates_; k += kChunk<S>) {
      const int64_t depth = lesser(kChunk<S>, gates_ - k);
      pack_row_blocks<S>(
          count, depth, [&](int64_t i) { return chunk.digates[rows.begin + i] + k; }, blocks);
      Strips<S> part = {whole, strip_words<S>(gates_), nullptr, shape_.I - strips.begin * kWidth,
                        words_of<S>(k)};
      if (packs_) {
        part.next = k + depth < gates_ ? whole + strip_words<S>(k + depth) : nullptr;
      } else {
        pack_rows<S>([&](int64_t i) { return weight + (k + i) * shape_.I; }, depth,
                     strips.begin * kWidth, shape_.I, size, packed);
        part = {packed, strip_words<S>(depth), nullptr, part.columns};
      }
      multiply_strips(part, size, count, depth, k > 0, blocks,
                      [&](int64_t i) { return Operand<S>{nullptr, sums + i * size * kWidth}; });
    }
    for (int64_t i = 0; i < count; ++i) {
      const Sum<S>* from = sums + i * size * kWidth;
      for (int64_t column = strips.begin * kWidth; column < strips.end * kWidth;
           column += V::kLanes, from += V::kLanes) {
        with_lanes<V::kLanes>(column, shape_.I, [&](auto lanes) {
          S* to = chunk.dx[rows.begin + i] + column;
          const Value sum = V::load(from, AllLanes{});
          V::store(to, adds() ? sum + V::load(to, lanes) : sum, lanes);
        });
      }
    }
  }

  // Whether the groups share x, so that each adds to dx.
  bool adds() const { return is_requested() && shape_.G > 1 && call_.dinput_stride[2] == 0; }

  const LstmBackward& call_;
  const int64_t gates_;   // 4H
  const int64_t strips_;  // of columns of x
  const bool packs_;
  Word<S>* const blocks_;
  Word<S>* const weight_;
  Sum<S>* const sums_;
};

}  // namespace
}  // namespace fastlstm::cpu

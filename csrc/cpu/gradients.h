// From the digates of a block of steps the gradients of weights, biases and input.
//
// The recurrence in backward.cpp calls this after every block. No row of the batch at any of the
// block's steps waits for another now: all are rows of the same products, a chunk of them at a
// time. The gradients of the peepholes are sums of what the recurrence has in registers, and are
// left to it.
#pragma once

#include "arrays.h"
#include "products.h"

namespace fastlstm::cpu {
namespace {

// Strips of W_ih that are packed together for dx: as wide as L2 allows, so that digates are read
// once for all of them.
constexpr int kInputStrips = 8;
// Rows of T times B from which on W_ih is packed once, and not for every chunk anew.
constexpr int64_t kPackRows = 1024;
// Slivers of digates that stay in L2 while all strips of x and h' pass by.
constexpr int64_t kSlivers = 32;

// Where a block's digates lie, which the recurrence writes and Gradients reads. They are kept for a
// block only, unless they are what was asked for.
template <class S>
class Digates : Arrays<S> {
  using Arrays<S>::out, Arrays<S>::time_from_end, Arrays<S>::row_of, Arrays<S>::shape_;
  static constexpr int64_t kLine = 64 / sizeof(S);

 public:
  Digates(const LstmBackward& call, int64_t block, Workspace& workspace)
      : Arrays<S>(call.shape),
        call_(call),
        gates_(4 * shape_.H),
        stride_((ceil_div(gates_, kLine) | 1) * kLine),
        block_(block),
        ring_(workspace.take<S>(shape_.G * (block + 1) * shape_.B * stride_)) {}

  // In the caller's memory if digates were asked for, else in a ring: a block, and the step before.
  S* row(int64_t s, int64_t b, int64_t g) const {
    if (call_.dinput && !shape_.I) {
      return out(call_.dinput) + row_of(time_from_end(g, s), b, g) * gates_;
    }
    return ring_ + ((g * (block_ + 1) + s % (block_ + 1)) * shape_.B + b) * stride_;
  }

 private:
  const LstmBackward& call_;
  const int64_t gates_;   // 4H
  const int64_t stride_;  // of the ring: an odd number of cache lines, for rows a power of two
                          // apart would share few sets of the cache
  const int64_t block_;   // steps
  S* const ring_;
};

// Adds up the gradients over the blocks; dx is done with each block, unless groups share it.
template <class S>
class Gradients : Arrays<S> {
  using Arrays<S>::in, Arrays<S>::out, Arrays<S>::of_group, Arrays<S>::time_from_end,
      Arrays<S>::offset, Arrays<S>::row_of, Arrays<S>::state, Arrays<S>::shape_;
  using V = Simd<Sum<S>>;
  using Value = typename V::Value;
  static constexpr int kWidth = kStripWidth<S>;

  // The rows of a chunk of a block, all of one group: what is multiplied with what.
  struct Chunk {
    int64_t count;
    const S* digates[kChunk<S>];
    const S* x[kChunk<S>];  // zeros past a row's length, whatever the caller has there
    const S* h[kChunk<S>];  // h'
    S* dx[kChunk<S>];
  };

 public:
  // Of `zeros` there are enough for a row of x, and of h.
  Gradients(const LstmBackward& call, const Digates<S>& digates, const S* zeros, int threads,
            Workspace& workspace)
      : Arrays<S>(call.shape),
        call_(call),
        digates_(digates),
        zeros_(zeros),
        gates_(4 * shape_.H),
        strips_(ceil_div(shape_.H, kWidth)),
        input_strips_(ceil_div(shape_.I, kWidth)),
        packs_ih_(shape_.T * shape_.B >= kPackRows),
        chunks_(workspace.take<Chunk>(threads)),
        slivers_(workspace.take<Word<S>>((gates_ + threads * kMaxRows) * kDepth)),
        digates_blocks_(workspace.take<Word<S>>(shape_.I ? block_words<S>(gates_) * kChunk<S> : 0)),
        operands_(workspace.take<Word<S>>((strips_ + input_strips_) * strip_words<S>(kChunk<S>))),
        weight_ih_(workspace.take<Word<S>>(
            packs_ih_ ? shape_.G * input_strips_ * strip_words<S>(gates_)
                      : threads * kInputStrips * strip_words<S>(kChunk<S>))),
        dx_(workspace.take<Sum<S>>(threads * kInputStrips * kWidth * kChunk<S>)) {}

  // Packs W_ih, and clears dx where it is summed up. A barrier must follow.
  void prepare(const Team& team) const {
    const Range strips = share(shape_.G * input_strips_, team.thread(), team.size());
    for (int64_t i = strips.begin; packs_ih_ && call_.dinput && i < strips.end; ++i) {
      const S* weight = of_group(call_.weight_ih, i / input_strips_);
      pack_rows<S>([&](int64_t k) { return weight + k * shape_.I; }, gates_,
                   i % input_strips_ * kWidth, shape_.I, 1,
                   weight_ih_ + i * strip_words<S>(gates_));
    }
    if (sums_dx()) {
      const Range steps = share(shape_.T, team.thread(), team.size());
      for (int64_t t = steps.begin; t < steps.end; ++t) {
        for (int64_t b = 0; b < shape_.B; ++b) {
          std::memset(static_cast<void*>(dinput(t, b, 0)), 0, shape_.I * sizeof(S));
        }
      }
    }
  }

  // What a block of one group adds to the gradients of its weights and biases, and its dx.
  void add(Team& team, int64_t group, Range block) const {
    const int64_t rows = (block.end - block.begin) * shape_.B;
    Chunk& chunk = chunks_[team.thread()];
    for (int64_t first = 0; first < rows; first += kChunk<S>) {
      chunk.count = lesser(kChunk<S>, rows - first);
      for (int64_t i = 0; i < chunk.count; ++i) {
        const int64_t s = block.begin + (first + i) / shape_.B, b = (first + i) % shape_.B;
        list_row(chunk, i, group, s, b);
      }
      const bool begins = block.begin == 0 && first == 0;
      if (call_.dinput && shape_.I) pack_digates(team, chunk);
      if (call_.dweight_ih || call_.dweight_hh) pack_operands(team, chunk);
      team.barrier();
      if (call_.dweight_ih || call_.dweight_hh) weight_gradients(team, group, chunk, begins);
      if (call_.dbias) bias_gradient(team, group, chunk, begins);
      if (call_.dinput && shape_.I) input_gradient(team, group, chunk);
      team.barrier();  // before digates and operands are overwritten
    }
  }

 private:
  void list_row(Chunk& chunk, int64_t i, int64_t g, int64_t s, int64_t b) const {
    const int64_t t = time_from_end(g, s);
    const Course course(shape_, g, b);
    const bool visits = course.visits(t);
    chunk.digates[i] = digates_.row(s, b, g);
    chunk.dx[i] = call_.dinput && shape_.I ? dinput(t, b, g) : nullptr;
    chunk.x[i] = chunk.h[i] = zeros_;
    if (!visits) return;
    if (shape_.I) chunk.x[i] = in(call_.input) + offset(call_.input_stride, t, b, g);
    chunk.h[i] = t == course.first() ? in(call_.hx) + state(g, b)
                                     : in(call_.y) + row_of(course.before(t), b, g) * shape_.H;
  }

  // The rows of digates in blocks, for dx: each thread packs some of the 4H in chunks.
  void pack_digates(const Team& team, const Chunk& chunk) const {
    const Range mine = share(ceil_div(gates_, kChunk<S>), team.thread(), team.size());
    for (int64_t i = mine.begin; i < mine.end; ++i) {
      const int64_t k = i * kChunk<S>;
      pack_row_blocks<S>(
          chunk.count, lesser(kChunk<S>, gates_ - k),
          [&](int64_t row) { return chunk.digates[row] + k; },
          digates_blocks_ + words_of<S>(k) * chunk.count);
    }
  }

  int64_t operand_input_strips() const { return call_.dweight_ih ? input_strips_ : 0; }
  int64_t operand_strips() const {
    return operand_input_strips() + (call_.dweight_hh ? strips_ : 0);
  }
  // The rows of dW that a thread computes, in slivers.
  Range slivers_of(const Team& team) const {
    return share(ceil_div(gates_, kMaxRows), team.thread(), team.size());
  }

  // x and h' in strips, and digates^T in slivers: each thread packs some strips for all, and the
  // slivers of its own rows of dW.
  void pack_operands(const Team& team, const Chunk& chunk) const {
    const int64_t words = words_of<S>(chunk.count), input_strips = operand_input_strips();
    const Range packs = share(operand_strips(), team.thread(), team.size());
    for (int64_t i = packs.begin; i < packs.end; ++i) {
      const bool is_x = i < input_strips;
      const S* const* from = is_x ? chunk.x : chunk.h;
      pack_rows<S>([&](int64_t k) { return from[k]; }, chunk.count,
                   (is_x ? i : i - input_strips) * kWidth, is_x ? shape_.I : shape_.H, 1,
                   operands_ + i * words * kWidth);
    }
    const Range slivers = slivers_of(team);
    pack_slivers(chunk.digates, chunk.count, slivers.begin * kMaxRows,
                 lesser(slivers.end * kMaxRows, gates_), gates_,
                 slivers_ + slivers.begin * kMaxRows * kDepth);
  }

  // dW += digates^T [x | h'].
  void weight_gradients(const Team& team, int64_t group, const Chunk& chunk, bool begins) const {
    const int64_t words = words_of<S>(chunk.count), depth = words * Format<S>::kPerWord;
    const int64_t input_strips = operand_input_strips(), strips = operand_strips();
    const Range slivers = slivers_of(team);
    const Range mine = {slivers.begin * kMaxRows, lesser(slivers.end * kMaxRows, gates_)};
    const Word<S>* sliver = slivers_ + mine.begin * kDepth;
    for (int64_t first = mine.begin; first < mine.end; first += kSlivers * kMaxRows) {
      const int64_t last = lesser(first + kSlivers * kMaxRows, mine.end);
      for (int64_t i = 0; i < strips; ++i) {
        const bool is_x = i < input_strips;
        const int64_t columns = is_x ? shape_.I : shape_.H;
        const int64_t column = (is_x ? i : i - input_strips) * kWidth;
        Sum<S>* dweight = static_cast<Sum<S>*>(is_x ? call_.dweight_ih : call_.dweight_hh) +
                          group * gates_ * columns + column;
        for (int64_t row = first; row < last; row += kMaxRows) {
          multiply_sliver(sliver + (row - mine.begin) * words, lesser(kMaxRows, last - row),
                          operands_ + i * words * kWidth, i + 1 < strips && row == first, depth,
                          dweight + row * columns, columns, lesser(kWidth, columns - column),
                          begins);
        }
      }
    }
  }

  // One sliver times one strip into dweight, of whose `stride` columns the strip covers `width`.
  void multiply_sliver(const Word<S>* sliver, int64_t size, const Word<S>* strip, bool look_ahead,
                       int64_t depth, Sum<S>* dweight, int64_t stride, int64_t width,
                       bool begins) const {
    const S* rows[kMaxRows];
    Sum<S>* c[kMaxRows];
    alignas(kVectorBytes) Sum<S> edge[kMaxRows][kWidth];
    const int vectors = vectors_of<S>(width);
    const bool direct = width == vectors * V::kLanes;
    for (int64_t r = 0; r < size; ++r) {
      rows[r] = reinterpret_cast<const S*>(sliver + r);
      c[r] = direct ? dweight + r * stride : edge[r];
    }
    multiply<S>(static_cast<int>(size), vectors, rows, {kMaxRows, 0}, strip,
                look_ahead ? strip + strip_words<S>(depth) : nullptr, depth, c, direct && !begins);
    for (int64_t r = 0; r < size && !direct; ++r) {
      for (int64_t column = 0; column < width; ++column) {
        Sum<S>& sum = dweight[r * stride + column];
        sum = (begins ? 0 : sum) + edge[r][column];
      }
    }
  }

  // dbias += the sum of digates over the rows; each thread has some of the 4H.
  void bias_gradient(const Team& team, int64_t group, const Chunk& chunk, bool begins) const {
    const Range mine = share(ceil_div(gates_, V::kLanes), team.thread(), team.size());
    for (int64_t i = mine.begin; i < mine.end; ++i) {
      const int64_t at = i * V::kLanes;
      Sum<S>* dbias = static_cast<Sum<S>*>(call_.dbias) + group * gates_ + at;
      with_lanes<V::kLanes>(at, gates_, [&](auto lanes) {
        Value sum = {};
        for (int64_t k = 0; k < chunk.count; ++k) sum += V::load(chunk.digates[k] + at, lanes);
        V::store(dbias, begins ? sum : sum + V::load(dbias, lanes), lanes);
      });
    }
  }

  // dx = or += digates W_ih. Threads share out its columns: all need all of digates.
  void input_gradient(const Team& team, int64_t group, const Chunk& chunk) const {
    const Range strips = share(input_strips_, team.thread(), team.size());
    const S* weight = of_group(call_.weight_ih, group);
    Word<S>* packed = weight_ih_ + team.thread() * kInputStrips * strip_words<S>(kChunk<S>);
    Sum<S>* dx = dx_ + team.thread() * kInputStrips * kWidth * kChunk<S>;
    for (int64_t strip = strips.begin; strip < strips.end; strip += kInputStrips) {
      const int size = static_cast<int>(lesser(kInputStrips, strips.end - strip));
      const Word<S>* whole = weight_ih_ + (group * input_strips_ + strip) * strip_words<S>(gates_);
      for (int64_t k = 0; k < gates_; k += kChunk<S>) {
        const int64_t depth = lesser(kChunk<S>, gates_ - k);
        Strips<S> part = {whole, strip_words<S>(gates_), nullptr, shape_.I - strip * kWidth,
                          words_of<S>(k)};
        if (packs_ih_) {
          part.next = k + depth < gates_ ? whole + strip_words<S>(k + depth) : nullptr;
        } else {
          pack_rows<S>([&](int64_t i) { return weight + (k + i) * shape_.I; }, depth,
                       strip * kWidth, shape_.I, size, packed);
          part = {packed, strip_words<S>(depth), nullptr, part.columns};
        }
        multiply_strips(part, size, chunk.count, depth, k > 0,
                        digates_blocks_ + words_of<S>(k) * chunk.count,
                        [&](int64_t i) { return Operand<S>{nullptr, dx + i * size * kWidth}; });
      }
      for (int64_t i = 0; i < chunk.count; ++i) {
        const Sum<S>* from = dx + i * size * kWidth;
        for (int64_t column = strip * kWidth; column < (strip + size) * kWidth;
             column += V::kLanes, from += V::kLanes) {
          with_lanes<V::kLanes>(column, shape_.I, [&](auto lanes) {
            S* to = chunk.dx[i] + column;
            const Value sum = V::load(from, AllLanes{});
            V::store(to, sums_dx() ? sum + V::load(to, lanes) : sum, lanes);
          });
        }
      }
    }
  }

  S* dinput(int64_t t, int64_t b, int64_t g) const {
    return out(call_.dinput) + offset(call_.dinput_stride, t, b, g);
  }
  // The groups share x, and each adds to dx in its own order of time.
  bool sums_dx() const {
    return call_.dinput && shape_.I && shape_.G > 1 && call_.dinput_stride[2] == 0;
  }

  const LstmBackward& call_;
  const Digates<S>& digates_;
  const S* const zeros_;
  const int64_t gates_;         // 4H
  const int64_t strips_;        // of hidden units
  const int64_t input_strips_;  // of columns of x
  const bool packs_ih_;
  Chunk* const chunks_;
  Word<S>* const slivers_;
  Word<S>* const digates_blocks_;
  Word<S>* const operands_;
  Word<S>* const weight_ih_;
  Sum<S>* const dx_;
};

}  // namespace
}  // namespace fastlstm::cpu

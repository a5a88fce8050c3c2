// Computes the gradients of weights, biases and input from the digates of a block of steps.
//
// The recurrence in backward.cpp calls this after every block. Rows of the batch at all steps of
// the block are then independent: they are the rows of one matrix product, a chunk of them at a
// time. The recurrence itself sums up the gradients of the peepholes, because it has the terms in
// registers.
#pragma once

#include "arrays.h"
#include "products.h"
#include "recompute.h"
#include "tasks.h"

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
// Rows of dx, and slivers of digates (rows of dweight), of one task: about 50 us.
constexpr int64_t kTaskRows = 64;
constexpr int64_t kTaskSlivers = 4;
// Bytes of strips of x and h' that stay in L2 while all slivers of a thread are multiplied with
// them.
constexpr int64_t kStripBytes = 384 * 1024;

// The rows of a chunk: those whose products are summed up before they are added to the gradients
// of weights. Twice as many if these are in L3 or memory.
template <class S>
int64_t chunk_rows(const LstmShape& shape) {
  const int64_t columns = shape.I + (shape.P ? shape.P : shape.H);
  const int64_t bytes = 4 * shape.H * columns * int64_t{sizeof(Sum<S>)};
  return bytes < 8 * 1024 * 1024 ? kChunk<S> : 2 * kChunk<S>;
}

// The numbers of the steps of a block that the recurrence writes and Gradients reads.
template <class S>
class StepBuffers : Arrays<S> {
  using Arrays<S>::out, Arrays<S>::time_from_end, Arrays<S>::row_of, Arrays<S>::shape_;

 public:
  StepBuffers(const LstmBackward& call, int64_t block, Workspace& workspace)
      : Arrays<S>(call.shape),
        call_(call),
        digates_(shape_, block, 4 * shape_.H, workspace),
        dh_(shape_, block, shape_.P, workspace),
        hidden_(shape_, block, shape_.P ? shape_.H : 0, workspace) {}

  // Whether digates are written to the caller's dinput, because they are its result.
  bool digates_are_dinput() const { return call_.dinput && !shape_.I; }
  // (4H)
  S* digates(int64_t s, int64_t b, int64_t g) const {
    if (!digates_are_dinput()) return digates_.row(s, b, g);
    return out(call_.dinput) + row_of(time_from_end(g, s), b, g) * 4 * shape_.H;
  }
  // With a projection: (P) the gradient of h, and (H) the cell's output before the projection.
  S* dh(int64_t s, int64_t b, int64_t g) const { return dh_.row(s, b, g); }
  S* hidden(int64_t s, int64_t b, int64_t g) const { return hidden_.row(s, b, g); }

 private:
  const LstmBackward& call_;
  const RingBuffer<S> digates_, dh_, hidden_;
};

// Adds up the gradients over the blocks. dx of a block is final, unless groups share dx.
template <class S>
class Gradients : Arrays<S> {
  using Arrays<S>::in, Arrays<S>::out, Arrays<S>::of_group, Arrays<S>::time_from_end,
      Arrays<S>::offset, Arrays<S>::state, Arrays<S>::shape_, Arrays<S>::hidden_size_;
  using V = Simd<Sum<S>>;
  using Value = typename V::Value;
  static constexpr int kWidth = kStripWidth<S>;
  static constexpr int64_t kMostTaskRows = kChunk<S> + kMaxRows<S>;  // of dx: whole blocks of rows

  // Pointers to the rows of a chunk: steps of one group within the rows' lengths.
  struct Chunk {
    int64_t count;
    const S* digates[2 * kChunk<S>];
    const S* x[2 * kChunk<S>];
    const S* h[2 * kChunk<S>];  // h'
    const S* dh[2 * kChunk<S>];
    const S* hidden[2 * kChunk<S>];
    S* dx[2 * kChunk<S>];
  };

  // dweight (G, columns of left, columns) = or += left^T rows; null if it was not requested.
  struct Right {
    const S* const* rows;
    int64_t columns;
    void* dweight;

    int64_t strips() const { return dweight ? ceil_div(columns, kWidth) : 0; }
  };
  struct Place {
    const Right* right;
    int64_t column;
  };
  struct Product {
    const S* const* left;
    int64_t columns;  // of left
    Right right[2];

    int64_t strips() const { return right[0].strips() + right[1].strips(); }
    // The rows of dweight that a thread packs and has tasks for, in slivers.
    Range slivers(int thread, int threads) const {
      return share(ceil_div(columns, kMaxRows<S>), thread, threads);
    }
    // A task is kTaskSlivers slivers times so many strips.
    int64_t tasks(int thread, int threads, int64_t strips_at_once) const {
      const Range mine = slivers(thread, threads);
      return ceil_div(mine.end - mine.begin, kTaskSlivers) * ceil_div(strips(), strips_at_once);
    }
    // The right side that has the `strip`-th strip of both, and the strip's first column there.
    Place at(int64_t strip) const {
      const int64_t first = right[0].strips();
      return strip < first ? Place{&right[0], strip * kWidth}
                           : Place{&right[1], (strip - first) * kWidth};
    }
  };

 public:
  // `zeros` has at least as many numbers as a row of h.
  Gradients(const LstmBackward& call, const Recomputation<S>& recomputation,
            const StepBuffers<S>& buffers, const S* zeros, int threads, Workspace& workspace)
      : Arrays<S>(call.shape),
        call_(call),
        recomputation_(recomputation),
        buffers_(buffers),
        zeros_(zeros),
        gates_(4 * shape_.H),
        input_strips_(ceil_div(shape_.I, kWidth)),
        packs_ih_(shape_.T * shape_.B >= kPackRows ||
                  gates_ * shape_.I * int64_t{sizeof(S)} <= kPackBytes),
        rows_(chunk_rows<S>(shape_)),
        strips_at_once_(
            greater(kStripBytes / (strip_words<S>(rows_) * int64_t{sizeof(Word<S>)}), 1)),
        chunks_(workspace.take<Chunk>(threads)),
        slivers_(workspace.take<Word<S>>((widest() + threads * kMaxRows<S>)*words_of<S>(rows_))),
        tasks_(workspace.take<char>(threads * Tasks::kBytesPerThread)),
        digates_blocks_(workspace.take<Word<S>>(
            shape_.I ? threads * kMostTaskRows * block_words<S>(kChunk<S>) : 0)),
        operands_(workspace.take<Word<S>>((ceil_div(widest(), kWidth) + input_strips_) *
                                          strip_words<S>(rows_))),
        weight_ih_(workspace.take<Word<S>>(
            packs_ih_ ? shape_.G * input_strips_ * strip_words<S>(gates_)
                      : threads * kInputStrips * strip_words<S>(kChunk<S>))),
        dx_(workspace.take<Sum<S>>(threads * kInputStrips * kWidth * kMostTaskRows)) {}

  // Packs W_ih, and clears dx where it is summed up over groups or past a row's length. A barrier
  // must follow.
  void prepare(const Team& team) const {
    const Range strips = share(shape_.G * input_strips_, team.thread(), team.size());
    for (int64_t i = strips.begin; packs_ih_ && call_.dinput && i < strips.end; ++i) {
      const S* weight = of_group(call_.weight_ih, i / input_strips_);
      pack_rows<S>([&](int64_t k) { return weight + k * shape_.I; }, gates_,
                   i % input_strips_ * kWidth, shape_.I, 1,
                   weight_ih_ + i * strip_words<S>(gates_));
    }
    if (!has_dx() || !(sums_dx() || shape_.lengths)) return;
    const Range steps = share(shape_.T, team.thread(), team.size());
    for (int64_t t = steps.begin; t < steps.end; ++t) {
      for (int64_t b = 0; b < shape_.B; ++b) {
        const bool visits = RowSteps(shape_, 0, b).has_step(t);
        if (visits ? !sums_dx() : shape_.first_row != nullptr) continue;
        for (int64_t g = 0; g < (sums_dx() ? 1 : shape_.G); ++g) {
          std::memset(static_cast<void*>(dinput(t, b, g)), 0, shape_.I * sizeof(S));
        }
      }
    }
  }

  // Adds a block of one group to the gradients of weights and biases, and computes its dx.
  void add(Team& team, int64_t group, Range block) const {
    Chunk& chunk = chunks_[team.thread()];
    const Product gates = {
        chunk.digates,
        gates_,
        {{chunk.x, shape_.I, call_.dweight_ih}, {chunk.h, hidden_size_, call_.dweight_hh}}};
    const Product projection = {
        chunk.dh, shape_.P, {{chunk.hidden, shape_.H, call_.dweight_hr}, {nullptr, 0, nullptr}}};
    const auto no_rest = [](int64_t) {};
    // The first block writes the gradients, even if it has no valid row, so that they are
    // initialised; later blocks add to them.
    bool begins = block.begin == 0;
    for (int64_t s = block.begin, b = 0; s < block.end; begins = false) {
      chunk.count = 0;
      for (; s < block.end && chunk.count < rows_; b = b + 1 < shape_.B ? b + 1 : (++s, 0)) {
        list_row(chunk, group, s, b);
      }
      if (chunk.count == 0 && !begins) break;
      const Cut dx = cut_input_gradient(chunk.count, team.size());
      multiply(team, group, gates, chunk.count, begins, dx.tasks(), [&](int64_t task) {
        input_gradient(team, group, chunk, dx.rows_of(task), dx.strips_of(task));
      });
      if (shape_.P && call_.dweight_hr) {
        multiply(team, group, projection, chunk.count, begins, 0, no_rest);
      }
    }
  }

 private:
  void list_row(Chunk& chunk, int64_t g, int64_t s, int64_t b) const {
    const int64_t t = time_from_end(g, s);
    const RowSteps row_steps(shape_, g, b);
    if (!row_steps.has_step(t)) return;
    const int64_t i = chunk.count++;
    chunk.digates[i] = buffers_.digates(s, b, g);
    if (has_dx()) chunk.dx[i] = dinput(t, b, g);
    if (shape_.I) chunk.x[i] = in(call_.input) + offset(call_.input_stride, t, b, g);
    chunk.h[i] = row_steps.is_reset(t)    ? zeros_
                 : t == row_steps.first() ? in(call_.hx) + state(g, b) * hidden_size_
                                          : recomputation_.h(row_steps.before(t), b, g);
    if (!shape_.P) return;
    chunk.dh[i] = buffers_.dh(s, b, g);
    chunk.hidden[i] = buffers_.hidden(s, b, g);
  }

  // Packs the right sides in strips and left^T in slivers. Each thread packs some of the strips,
  // which all threads read, and the slivers of its own rows of dweight.
  void pack(const Team& team, const Product& product, int64_t count) const {
    const int64_t words = words_of<S>(count);
    const Range packs = share(product.strips(), team.thread(), team.size());
    for (int64_t i = packs.begin; i < packs.end; ++i) {
      const auto [right, column] = product.at(i);
      const S* const* rows = right->rows;
      pack_rows<S>([&](int64_t k) { return rows[k]; }, count, column, right->columns, 1,
                   operands_ + i * words * kWidth);
    }
    if (product.strips() == 0) return;
    const Range slivers = product.slivers(team.thread(), team.size());
    pack_slivers(product.left, count, slivers.begin * kMaxRows<S>,
                 lesser(slivers.end * kMaxRows<S>, product.columns), product.columns,
                 slivers_ + slivers.begin * kMaxRows<S> * words_of<S>(rows_));
  }

  // dweight = or += left^T right; and `rest_tasks` other tasks, which take longer than one of
  // these.
  template <class Rest>
  void multiply(Team& team, int64_t group, const Product& product, int64_t count, bool begins,
                int64_t rest_tasks, const Rest& rest) const {
    const auto rest_of = [&](int thread) { return share(rest_tasks, thread, team.size()); };
    const auto num_rest = [&](int thread) { return rest_of(thread).end - rest_of(thread).begin; };
    pack(team, product, count);
    tasks_.set_share(
        team, num_rest(team.thread()) + product.tasks(team.thread(), team.size(), strips_at_once_));
    team.barrier();
    if (product.left == chunks_[team.thread()].digates && call_.dbias) {
      bias_gradient(team, group, chunks_[team.thread()], begins);
    }
    tasks_.run(team, [&](int owner, int64_t task) {
      const int64_t first = num_rest(owner);
      if (task < first) return rest(rest_of(owner).begin + task);
      multiply_task(group, product, product.slivers(owner, team.size()), task - first, count,
                    begins);
    });
    team.barrier();  // before digates and operands are overwritten
  }

  // One task of a thread that owns `slivers`. The strips stay in L2 from task to task, a sliver in
  // L1 from strip to strip.
  void multiply_task(int64_t group, const Product& product, Range slivers, int64_t task,
                     int64_t count, bool begins) const {
    const int64_t words = words_of<S>(count), depth = words * Format<S>::kPerWord;
    const int64_t per_strips = ceil_div(slivers.end - slivers.begin, kTaskSlivers);
    const int64_t first_strip = task / per_strips * strips_at_once_;
    const int64_t end_strip = lesser(first_strip + strips_at_once_, product.strips());
    const int64_t first = slivers.begin + task % per_strips * kTaskSlivers;
    const int64_t end = lesser(first + kTaskSlivers, slivers.end);
    for (int64_t i = first; i < end; ++i) {
      const int64_t row = i * kMaxRows<S>;
      const Word<S>* sliver = slivers_ + slivers.begin * kMaxRows<S> * words_of<S>(rows_) +
                              (i - slivers.begin) * kMaxRows<S> * words;
      for (int64_t strip = first_strip; strip < end_strip; ++strip) {
        const auto [right, column] = product.at(strip);
        const int64_t columns = right->columns;
        Sum<S>* dweight =
            static_cast<Sum<S>*>(right->dweight) + (group * product.columns + row) * columns;
        multiply_sliver(sliver, lesser(kMaxRows<S>, product.columns - row),
                        operands_ + strip * words * kWidth,
                        i == slivers.begin && strip + 1 < product.strips(), depth, dweight + column,
                        columns, lesser(kWidth, columns - column), begins);
      }
    }
  }

  // Adds the product of a sliver and a strip to dweight. The strip covers `width` of its `stride`
  // columns.
  void multiply_sliver(const Word<S>* sliver, int64_t size, const Word<S>* strip, bool look_ahead,
                       int64_t depth, Sum<S>* dweight, int64_t stride, int64_t width,
                       bool begins) const {
    Sum<S>* c[kMaxRows<S>];
    alignas(kVectorBytes) Sum<S> edge[kMaxRows<S>][kWidth];
    const int vectors = vectors_of<S>(width);
    const bool direct = width == vectors * V::kLanes;
    for (int64_t r = 0; r < size; ++r) {
      c[r] = direct ? dweight + r * stride : edge[r];
    }
    const Word<S>* ahead = look_ahead ? strip + strip_words<S>(depth) : nullptr;
    const bool add = direct && !begins;
    if constexpr (kOnTiles<S>) {
      multiply_on_tiles<S>(static_cast<int>(size), vectors, rows_matrix<S>(sliver, kMaxRows<S>),
                           strip, ahead, depth, c, add);
    } else {
      const S* rows[kMaxRows<S>];
      for (int64_t r = 0; r < size; ++r) rows[r] = reinterpret_cast<const S*>(sliver + r);
      cpu::multiply<S>(static_cast<int>(size), vectors, rows, {kMaxRows<S>, 0}, strip, ahead, depth,
                       c, add);
    }
    for (int64_t r = 0; r < size && !direct; ++r) {
      for (int64_t column = 0; column < width; ++column) {
        Sum<S>& sum = dweight[r * stride + column];
        sum = (begins ? 0 : sum) + edge[r][column];
      }
    }
  }

  // dbias += the sum of digates over the rows. Threads share out the 4H columns.
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

  // How dx of a chunk is cut into tasks: parts of its rows times parts of the strips of W_ih.
  struct Cut {
    int64_t rows, strips;  // of the chunk, and of W_ih
    int64_t row_parts, strips_at_once;

    int64_t tasks() const { return row_parts * ceil_div(strips, strips_at_once); }
    // Whole blocks of rows.
    Range rows_of(int64_t task) const {
      const Range blocks = share(ceil_div(rows, kMaxRows<S>), task % row_parts, row_parts);
      return {blocks.begin * kMaxRows<S>, lesser(blocks.end * kMaxRows<S>, rows)};
    }
    Range strips_of(int64_t task) const {
      const int64_t first = task / row_parts * strips_at_once;
      return {first, lesser(first + strips_at_once, strips)};
    }
  };
  // A task has all rows if it packs its part of W_ih itself, or reads it from memory: at H = 2048
  // parts of 64 rows took 4% longer.
  Cut cut_input_gradient(int64_t rows, int threads) const {
    const int64_t weight_bytes = input_strips_ * strip_words<S>(gates_) * sizeof(Word<S>);
    const bool parts = packs_ih_ && weight_bytes <= kL3WeightBytes;
    const int64_t row_parts = greater(ceil_div(rows, parts ? kTaskRows : kChunk<S>), 1);
    const int64_t strips = has_dx() && rows ? input_strips_ : 0;
    const int64_t at_once = ceil_div(strips * row_parts, threads);
    return {rows, strips, row_parts, greater(lesser(at_once, kInputStrips), 1)};
  }

  // dx = or += digates W_ih, for some rows of a chunk and some strips.
  void input_gradient(const Team& team, int64_t group, const Chunk& chunk, Range rows,
                      Range strips) const {
    const S* weight = of_group(call_.weight_ih, group);
    const int64_t count = rows.end - rows.begin;
    const int size = static_cast<int>(strips.end - strips.begin);
    Word<S>* packed = weight_ih_ + team.thread() * kInputStrips * strip_words<S>(kChunk<S>);
    Word<S>* blocks = digates_blocks_ + team.thread() * kMostTaskRows * block_words<S>(kChunk<S>);
    Sum<S>* dx = dx_ + team.thread() * kInputStrips * kWidth * kMostTaskRows;
    const Word<S>* whole =
        weight_ih_ + (group * input_strips_ + strips.begin) * strip_words<S>(gates_);
    for (int64_t k = 0; k < gates_; k += kChunk<S>) {
      const int64_t depth = lesser(kChunk<S>, gates_ - k);
      pack_row_blocks<S>(
          count, depth, [&](int64_t i) { return chunk.digates[rows.begin + i] + k; }, blocks);
      Strips<S> part = {whole, strip_words<S>(gates_), nullptr, shape_.I - strips.begin * kWidth,
                        words_of<S>(k)};
      if (packs_ih_) {
        part.next = k + depth < gates_ ? whole + strip_words<S>(k + depth) : nullptr;
      } else {
        pack_rows<S>([&](int64_t i) { return weight + (k + i) * shape_.I; }, depth,
                     strips.begin * kWidth, shape_.I, size, packed);
        part = {packed, strip_words<S>(depth), nullptr, part.columns};
      }
      multiply_strips(part, size, count, depth, k > 0, blocks,
                      [&](int64_t i) { return Operand<S>{nullptr, dx + i * size * kWidth}; });
    }
    for (int64_t i = 0; i < count; ++i) {
      const Sum<S>* from = dx + i * size * kWidth;
      for (int64_t column = strips.begin * kWidth; column < strips.end * kWidth;
           column += V::kLanes, from += V::kLanes) {
        with_lanes<V::kLanes>(column, shape_.I, [&](auto lanes) {
          S* to = chunk.dx[rows.begin + i] + column;
          const Value sum = V::load(from, AllLanes{});
          V::store(to, sums_dx() ? sum + V::load(to, lanes) : sum, lanes);
        });
      }
    }
  }

  S* dinput(int64_t t, int64_t b, int64_t g) const {
    return out(call_.dinput) + offset(call_.dinput_stride, t, b, g);
  }
  // Whether dx is requested, and is not digates.
  bool has_dx() const { return call_.dinput && shape_.I; }
  // Whether the groups share x, so that each adds to dx.
  bool sums_dx() const { return has_dx() && shape_.G > 1 && call_.dinput_stride[2] == 0; }
  // The most columns of digates, h and dh.
  int64_t widest() const { return gates_ > shape_.P ? gates_ : shape_.P; }

  const LstmBackward& call_;
  const Recomputation<S>& recomputation_;
  const StepBuffers<S>& buffers_;
  const S* const zeros_;
  const int64_t gates_;         // 4H
  const int64_t input_strips_;  // of columns of x
  const bool packs_ih_;
  const int64_t rows_;            // of a chunk
  const int64_t strips_at_once_;  // of a task
  Chunk* const chunks_;
  Word<S>* const slivers_;
  const Tasks tasks_;
  Word<S>* const digates_blocks_;
  Word<S>* const operands_;
  Word<S>* const weight_ih_;
  Sum<S>* const dx_;
};

}  // namespace
}  // namespace fastlstm::cpu

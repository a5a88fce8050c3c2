// Computes the gradients of weights, biases and input from the digates of a block of steps.
//
// The recurrence in backward.cpp calls this after every block. Rows of the batch at all steps of
// the block are then independent: they are the rows of one matrix product, a chunk of them at a
// time. The recurrence itself sums up the gradients of the peepholes, because it has the terms in
// registers.
#pragma once

#include "arrays.h"
#include "input_gradient.h"
#include "products.h"
#include "recompute.h"
#include "step_buffers.h"
#include "tasks.h"

namespace fastlstm::cpu {
namespace {

// Slivers of digates (rows of dweight) and strips of x and h' of one task, about 50 us. The strips
// stay in L2 while all slivers of a thread are multiplied with them.
constexpr int64_t kTaskSlivers = 4;
constexpr int64_t kTaskStrips = 3;

// Adds up the gradients over the blocks. dx of a block is final, unless groups share dx.
template <class S>
class Gradients : Arrays<S> {
  using Arrays<S>::in, Arrays<S>::out, Arrays<S>::of_group, Arrays<S>::time_from_end,
      Arrays<S>::offset, Arrays<S>::state, Arrays<S>::shape_, Arrays<S>::hidden_size_;
  using V = Simd<Sum<S>>;
  using Value = typename V::Value;
  static constexpr int kWidth = kStripWidth<S>;

  // dweight (G, columns of left, columns) = or += left^T rows; null if it was not requested.
  struct Right {
    const S* const* rows;
    int64_t columns;
    void* dweight;
    const S* const* masks;  // factors of the rows, or null

    int64_t strips() const { return dweight ? ceil_div(columns, kWidth) : 0; }
  };
  struct Place {
    const Right* right;
    int64_t column;
  };
  // How dweight is cut into parts, one for each thread: some slivers, which are its rows, times
  // some strips, which are columns. A part has tasks of up to kTaskSlivers times kTaskStrips.
  struct Part {
    Range slivers, strips;

    int64_t tasks() const {
      return ceil_div(slivers.end - slivers.begin, kTaskSlivers) *
             ceil_div(strips.end - strips.begin, kTaskStrips);
    }
  };
  struct Product {
    const S* const* left;
    int64_t columns;  // of left
    Right right[2];

    int64_t slivers() const { return ceil_div(columns, kMaxRows<S>); }
    int64_t strips() const { return right[0].strips() + right[1].strips(); }
    // The number of parts of the strips: that with which the largest part takes least time. It is
    // measured in products of a sliver and a strip, 0.4 of which take as long as to read a strip of
    // 512 rows from L3, and 0.04 a sliver. There are at least twice as many threads as parts, so
    // that two threads have half of the rows each.
    int64_t strip_parts(int threads) const {
      int64_t best = 1;
      double least = 0;
      for (int64_t parts = 1; parts == 1 || parts <= lesser(threads / 2, strips()); parts *= 2) {
        const auto rows = static_cast<double>(ceil_div(slivers(), threads / parts));
        const auto columns = static_cast<double>(ceil_div(strips(), parts));
        const double time = rows * columns + 0.4 * columns + 0.04 * rows;
        if (parts == 1 || time < least) best = parts, least = time;
      }
      return best;
    }
    // The part of a thread; threads beyond the last part have none.
    Part part(int thread, int threads) const {
      const int64_t columns = strip_parts(threads), rows = threads / columns;
      if (thread >= rows * columns) return {{0, 0}, {0, 0}};
      return {share(slivers(), thread / columns, rows), share(strips(), thread % columns, columns)};
    }
    // The slivers that a thread packs: those of its part, shared out among the threads that read
    // them.
    Range slivers_to_pack(int thread, int threads) const {
      const Range read = part(thread, threads).slivers;
      const int64_t columns = strip_parts(threads);
      const Range mine = share(read.end - read.begin, thread % columns, columns);
      return {read.begin + mine.begin, read.begin + mine.end};
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
        chunks_(workspace.take<Chunk<S>>(threads)),
        slivers_(workspace.take<Word<S>>((widest() + kMaxRows<S>)*words_of<S>(kChunkRows<S>))),
        tasks_(workspace.take<char>(threads * Tasks::kBytesPerThread)),
        operands_(
            workspace.take<Word<S>>((ceil_div(widest(), kWidth) + ceil_div(shape_.I, kWidth)) *
                                    strip_words<S>(kChunkRows<S>))),
        input_gradient_(call, threads, workspace),
        masked_(workspace.take<S>(threads * kChunkRows<S> * kWidth)) {}

  // A barrier must follow.
  void prepare(const Team& team) const { input_gradient_.prepare(team); }

  // Adds a block of one group to the gradients of weights and biases, and computes its dx.
  void add(Team& team, int64_t group, Range block) const {
    Chunk<S>& chunk = chunks_[team.thread()];
    const S* const* masks = hidden_mask() ? chunk.mask : nullptr;
    const Product gates = {chunk.digates,
                           gates_,
                           {{chunk.x, shape_.I, call_.dweight_ih, nullptr},
                            {chunk.h, hidden_size_, call_.dweight_hh, masks}}};
    const Product projection = {
        chunk.dh,
        shape_.P,
        {{chunk.hidden, shape_.H, call_.dweight_hr, nullptr}, {nullptr, 0, nullptr, nullptr}}};
    const auto no_rest = [](int64_t) {};
    // The first block writes the gradients, even if it has no valid row, so that they are
    // initialised; later blocks add to them.
    bool begins = block.begin == 0;
    for (int64_t s = block.begin, b = 0; s < block.end; begins = false) {
      chunk.count = 0;
      for (; s < block.end && chunk.count < kChunkRows<S>;
           b = b + 1 < shape_.B ? b + 1 : (++s, 0)) {
        list_row(chunk, group, s, b);
      }
      if (chunk.count == 0 && !begins) break;
      if (call_.dbias) bias_gradient(team, group, chunk, begins);
      multiply(team, group, gates, chunk.count, begins,
               input_gradient_.tasks(chunk.count, team.size()),
               [&](int64_t task) { input_gradient_.run(team, group, chunk, task); });
      if (shape_.P && call_.dweight_hr) {
        multiply(team, group, projection, chunk.count, begins, 0, no_rest);
      }
    }
  }

 private:
  const S* hidden_mask() const { return call_.options ? in(call_.options->hidden_mask) : nullptr; }

  void list_row(Chunk<S>& chunk, int64_t g, int64_t s, int64_t b) const {
    const int64_t t = time_from_end(g, s);
    const RowSteps row_steps(shape_, g, b);
    if (!row_steps.has_step(t)) return;
    const int64_t i = chunk.count++;
    chunk.digates[i] = buffers_.digates(s, b, g);
    if (input_gradient_.is_requested()) chunk.dx[i] = input_gradient_.row(t, b, g);
    if (shape_.I) chunk.x[i] = in(call_.input) + offset(call_.input_stride, t, b, g);
    chunk.h[i] = row_steps.is_reset(t)    ? zeros_
                 : t == row_steps.first() ? in(call_.hx) + state(g, b) * hidden_size_
                                          : recomputation_.h(row_steps.before(t), b, g);
    if (hidden_mask()) chunk.mask[i] = hidden_mask() + state(g, b) * hidden_size_;
    if (!shape_.P) return;
    chunk.dh[i] = buffers_.dh(s, b, g);
    chunk.hidden[i] = buffers_.hidden(s, b, g);
  }

  // Packs the right sides in strips and left^T in slivers. Each thread packs some of both. If there
  // are more threads than strips, they pack parts of the rows.
  void pack(const Team& team, const Product& product, int64_t count) const {
    const int64_t words = words_of<S>(count), strips = product.strips();
    if (strips == 0) return;
    for_each_depth_part(strips, count, team.thread(), team.size(), [&](int64_t i, Range rows) {
      const auto [right, column] = product.at(i);
      const int64_t width = vectors_of<S>(right->columns - column) * V::kLanes;
      Word<S>* const to = operands_ + i * words * kWidth + words_of<S>(rows.begin) * width;
      if (right->masks) {
        S* const scratch = masked_ + team.thread() * kChunkRows<S> * kWidth;
        return pack_masked(*right, column, rows, scratch, to);
      }
      const S* const* from = right->rows + rows.begin;
      pack_rows<S>([&](int64_t k) { return from[k]; }, rows.end - rows.begin, column,
                   right->columns, 1, to);
    });
    const Range slivers = product.slivers_to_pack(team.thread(), team.size());
    pack_slivers(product.left, count, slivers.begin * kMaxRows<S>,
                 lesser(slivers.end * kMaxRows<S>, product.columns), product.columns,
                 slivers_ + slivers.begin * kMaxRows<S> * words);
  }

  // Packs `rows` of the strip at `column`, times their masks; they are multiplied in `scratch`.
  void pack_masked(const Right& right, int64_t column, Range rows, S* scratch, Word<S>* to) const {
    const int64_t width = lesser(kWidth, right.columns - column), count = rows.end - rows.begin;
    for (int64_t k = 0; k < count; ++k) {
      const S *const row = right.rows[rows.begin + k], *const mask = right.masks[rows.begin + k];
      for (int64_t at = 0; at < width; at += V::kLanes) {
        with_lanes<V::kLanes>(at, width, [&](auto lanes) {
          const Value product =
              V::load(mask + column + at, lanes) * V::load(row + column + at, lanes);
          V::store(scratch + k * kWidth + at, product, lanes);
        });
      }
    }
    pack_rows<S>([&](int64_t k) { return scratch + k * kWidth; }, count, 0, width, 1, to);
  }

  // dweight = or += left^T right; and `rest_tasks` other tasks, which take longer than one of
  // these.
  template <class Rest>
  void multiply(Team& team, int64_t group, const Product& product, int64_t count, bool begins,
                int64_t rest_tasks, const Rest& rest) const {
    const auto rest_of = [&](int thread) { return share(rest_tasks, thread, team.size()); };
    const auto num_rest = [&](int thread) { return rest_of(thread).end - rest_of(thread).begin; };
    pack(team, product, count);
    const auto part = [&](int thread) { return product.part(thread, team.size()); };
    tasks_.set_share(team, num_rest(team.thread()) + part(team.thread()).tasks());
    team.barrier();
    tasks_.run(team, [&](int owner, int64_t task) {
      const int64_t first = num_rest(owner);
      if (task < first) return rest(rest_of(owner).begin + task);
      multiply_task(group, product, part(owner), task - first, count, begins);
    });
    team.barrier();  // before digates and operands are overwritten
  }

  // One task of a part. The strips stay in L2 from task to task.
  void multiply_task(int64_t group, const Product& product, const Part& part, int64_t task,
                     int64_t count, bool begins) const {
    const Range slivers = part.slivers;
    const int64_t words = words_of<S>(count), depth = words * Format<S>::kPerWord;
    const int64_t per_strips = ceil_div(slivers.end - slivers.begin, kTaskSlivers);
    const int64_t first_strip = part.strips.begin + task / per_strips * kTaskStrips;
    const int64_t end_strip = lesser(first_strip + kTaskStrips, part.strips.end);
    const int64_t first = slivers.begin + task % per_strips * kTaskSlivers;
    const int64_t end = lesser(first + kTaskSlivers, slivers.end);
    for (int64_t i = first; i < end; ++i) {
      const int64_t row = i * kMaxRows<S>;
      const Word<S>* sliver = slivers_ + row * words;
      for (int64_t strip = first_strip; strip < end_strip; ++strip) {
        const auto [right, column] = product.at(strip);
        const int64_t columns = right->columns;
        Sum<S>* dweight =
            static_cast<Sum<S>*>(right->dweight) + (group * product.columns + row) * columns;
        multiply_sliver(sliver, lesser(kMaxRows<S>, product.columns - row),
                        operands_ + strip * words * kWidth,
                        i == slivers.begin && strip + 1 < part.strips.end, depth, dweight + column,
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
    Ahead<S> ahead;
    if (look_ahead) ahead = {strip + strip_words<S>(depth), words_of<S>(depth) / kRun};
    const bool add = direct && !begins;
    if constexpr (kOnTiles<S>) {
      multiply_on_tiles<S>(static_cast<int>(size), vectors, rows_matrix<S>(sliver, kMaxRows<S>),
                           strip, ahead.strip, depth, c, add);
    } else {
      cpu::multiply<S>(static_cast<int>(size), vectors, Sliver<S>{sliver}, strip, ahead, depth, c,
                       add);
    }
    for (int64_t r = 0; r < size && !direct; ++r) {
      for (int64_t column = 0; column < width; ++column) {
        Sum<S>& sum = dweight[r * stride + column];
        sum = (begins ? 0 : sum) + edge[r][column];
      }
    }
  }

  // dbias += the sum of digates over the rows. Threads share out the 4H columns.
  void bias_gradient(const Team& team, int64_t group, const Chunk<S>& chunk, bool begins) const {
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

  // The most columns of digates, h and dh.
  int64_t widest() const { return gates_ > shape_.P ? gates_ : shape_.P; }

  const LstmBackward& call_;
  const Recomputation<S>& recomputation_;
  const StepBuffers<S>& buffers_;
  const S* const zeros_;
  const int64_t gates_;  // 4H
  Chunk<S>* const chunks_;
  Word<S>* const slivers_;
  const Tasks tasks_;
  Word<S>* const operands_;
  const InputGradient<S> input_gradient_;
  S* const masked_;
};

}  // namespace
}  // namespace fastlstm::cpu

// The backward pass, compiled once per instruction set.
//
// Time runs in blocks, from the last forward step to the first. Within a block the recurrence comes
// first: a step of a tile is, for each strip of hidden units, the product of the later step's
// digates with W_hh, and then the cell's gradient on it. dc lives beside it in full precision. Then
// the block's digates, still in cache, go into the gradients of the weights and of the input. They
// are kept for a block only, unless they are what was asked for.
#include "kernels.h"
#include "products.h"
#include "schedule.h"

namespace fastlstm::cpu::FASTLSTM_ISA {
namespace {

// Strips of W_ih that are packed together for dx: as wide as L2 allows, so that digates are read
// once for all of them.
constexpr int kInputStrips = 8;
// Rows of T times B from which on W_ih is packed once, and not for every chunk anew.
constexpr int64_t kPackRows = 1024;
// Slivers of digates that stay in L2 while all strips of x and h' pass by.
constexpr int64_t kSlivers = 32;

template <class S>
class Backward {
  using V = Simd<Sum<S>>;
  using Value = typename V::Value;
  static constexpr int kWidth = kStripWidth<S>;
  static constexpr int64_t kChunk = kDepth * Format<S>::kPerWord;
  static constexpr int64_t kLine = 64 / sizeof(S);

  // Where a row of the batch finds its data at one step; each pointer to hidden unit 0.
  struct Row {
    const S* digates_after;  // (4H) of the step after this one in the forward order, or zeros
    S* dhx;                  // (H) the row has no step left: only this remains; else null
    const S* dhy;            // (H) at the last forward step, else null
    const S* dy;             // (H) or null
    const S* reserve;        // (5H)
    const S* c_prev;         // (H)
    Sum<S>* dc;              // (H)
    S* digates;              // (4H)
  };

  // The rows of a chunk of a block, all of one group: what is multiplied with what.
  struct Chunk {
    int64_t count;
    const S* digates[kChunk];
    const S* x[kChunk];  // zeros past a row's length, whatever the caller has there
    const S* h[kChunk];  // h'
    S* dx[kChunk];
  };

 public:
  Backward(const LstmBackward& call, int num_threads)
      : call_(call),
        shape_(call.shape),
        gates_(4 * call.shape.H),
        digates_stride_((ceil_div(gates_, kLine) | 1) * kLine),
        strips_(ceil_div(shape_.H, kWidth)),
        input_strips_(ceil_div(shape_.I, kWidth)),
        packs_ih_(shape_.T * shape_.B >= kPackRows),
        threads_(worthwhile_threads(num_threads, flops(), shape_.T)),
        stays_near_(plan_for(threads_).stays_near) {
    block_ = ceil_div(kChunk, shape_.B + 1);
    if (block_ > shape_.T) block_ = shape_.T;
    const int64_t widest = shape_.I > gates_ ? shape_.I : gates_;
    Workspace workspace(call.workspace);
    progress_ = workspace.take<Progress>(threads_);
    rows_ = workspace.take<Row>(threads_ * shape_.B);
    chunks_ = workspace.take<Chunk>(threads_);
    zeros_ = workspace.take<S>(widest);
    dc_ = workspace.take<Sum<S>>(shape_.G * shape_.B * shape_.H);
    dh_ = workspace.take<Sum<S>>(threads_ * shape_.B * kWidth);
    dweight_ch_ = workspace.take<Sum<S>>(threads_ * dweight_ch_size());
    weight_hh_ = workspace.take<Word<S>>(shape_.G * strips_ * strip_words(gates_));
    digates_ = workspace.take<S>(shape_.G * (block_ + 1) * shape_.B * digates_stride_);
    slivers_ = workspace.take<Word<S>>((gates_ + threads_ * kMaxRows) * kDepth);
    digates_blocks_ = workspace.take<Word<S>>(shape_.I ? block_words<S>(gates_) * kChunk : 0);
    operands_ = workspace.take<Word<S>>((strips_ + input_strips_) * strip_words(kChunk));
    weight_ih_ = workspace.take<Word<S>>(packs_ih_ ? shape_.G * input_strips_ * strip_words(gates_)
                                                   : threads_ * kInputStrips * strip_words(kChunk));
    dx_ = workspace.take<Sum<S>>(threads_ * kInputStrips * kWidth * kChunk);
    workspace_bytes_ = workspace.bytes();
  }

  size_t workspace_bytes() const { return workspace_bytes_; }

  void run() const {
    const int64_t widest = shape_.I > gates_ ? shape_.I : gates_;
    std::memset(static_cast<void*>(zeros_), 0, widest * sizeof(S));
    run_team(progress_, threads_, [this](Team team) {
      const Plan plan = plan_for(team.size());
      const Scratch scratch = {
          rows_ + team.thread() * shape_.B,
          dh_ + team.thread() * shape_.B * kWidth,
          dweight_ch_ + team.thread() * dweight_ch_size(),
      };
      const auto for_each_tile = [&](const auto& visit) {
        plan.for_each_tile(shape_, team.thread(), visit);
      };
      prepare(team, scratch);
      for_each_tile([&](const Tile& tile) { start(tile); });
      team.barrier();
      for (int64_t first = 0; first < shape_.T; first += block_) {
        const Range block = {first, lesser(first + block_, shape_.T)};
        if (plan.by_rows) {
          for_each_tile([&](const Tile& tile) {
            for (int64_t s = block.begin; s < block.end; ++s) step(tile, s, scratch);
          });
          team.barrier();
        } else {
          for (int64_t s = block.begin; s < block.end; ++s) {
            for_each_tile([&](const Tile& tile) { step(tile, s, scratch); });
            team.barrier();
          }
        }
        for (int64_t group = 0; group < shape_.G; ++group) gradients(team, group, block);
      }
      for_each_tile([&](const Tile& tile) {
        step(tile, shape_.T, scratch);
        end(tile);
      });
      team.barrier();
      if (call_.dweight_ch) sum_dweight_ch(team);
    });
  }

 private:
  struct Scratch {
    Row* rows;
    Sum<S>* dh;
    Sum<S>* dweight_ch;
  };

  double flops() const {
    return 16.0 * shape_.T * shape_.B * shape_.G * shape_.H * (shape_.I + shape_.H);
  }
  Plan plan_for(int threads) const {
    const int64_t weight_bytes = strips_ * strip_words(gates_) * sizeof(Word<S>);
    return Plan(shape_, threads, strips_, weight_bytes);
  }
  static constexpr int64_t strip_words(int64_t depth) { return words_of<S>(depth) * kWidth; }

  // Packs W_hh, and clears what is summed up.
  void prepare(const Team& team, const Scratch& scratch) const {
    const Range mine = share(shape_.G * strips_, team.thread(), team.size());
    for (int64_t i = mine.begin; i < mine.end; ++i) {
      const S* weight = of_group(call_.weight_hh, i / strips_);
      pack_rows<S>([&](int64_t k) { return weight + k * shape_.H; }, gates_, i % strips_ * kWidth,
                   shape_.H, 1, weight_hh_ + i * strip_words(gates_));
    }
    const Range strips = share(shape_.G * input_strips_, team.thread(), team.size());
    for (int64_t i = strips.begin; packs_ih_ && call_.dinput && i < strips.end; ++i) {
      const S* weight = of_group(call_.weight_ih, i / input_strips_);
      pack_rows<S>([&](int64_t k) { return weight + k * shape_.I; }, gates_,
                   i % input_strips_ * kWidth, shape_.I, 1, weight_ih_ + i * strip_words(gates_));
    }
    for (int64_t i = 0; i < dweight_ch_size(); ++i) scratch.dweight_ch[i] = 0;
    if (sums_dx()) {
      const Range steps = share(shape_.T, team.thread(), team.size());
      for (int64_t t = steps.begin; t < steps.end; ++t) {
        for (int64_t b = 0; b < shape_.B; ++b) {
          std::memset(static_cast<void*>(dinput(t, b, 0)), 0, shape_.I * sizeof(S));
        }
      }
    }
  }

  // dc of the last step; and a row that has no step at all hands on.
  void start(const Tile& tile) const {
    for_each_vector(tile, [&](int64_t b, int64_t unit, auto lanes) {
      const int64_t at = state(tile.group, b) + unit;
      const Value zero = {};
      V::store(dc_ + at, call_.dcy ? V::load(in(call_.dcy) + at, lanes) : zero, lanes);
      if (Course(shape_, tile.group, b).length == 0) {
        V::store(out(call_.dhx) + at, call_.dhy ? V::load(in(call_.dhy) + at, lanes) : zero, lanes);
      }
    });
  }

  void end(const Tile& tile) const {
    for_each_vector(tile, [&](int64_t b, int64_t unit, auto lanes) {
      const int64_t at = state(tile.group, b) + unit;
      V::store(out(call_.dcx) + at, V::load(dc_ + at, lanes), lanes);
    });
  }

  void step(const Tile& tile, int64_t s, const Scratch& scratch) const {
    const Row* rows = scratch.rows;
    const int64_t count = visit_rows(tile, s, scratch.rows);
    for (int64_t panel = tile.panels.begin; panel < tile.panels.end; ++panel) {
      Sum<S>* dh = scratch.dh;
      if (s == 0) std::memset(dh, 0, count * kWidth * sizeof(*dh));
      const Word<S>* weight = weight_hh_ + (tile.group * strips_ + panel) * strip_words(gates_);
      for (int64_t k = 0; s > 0 && k < gates_; k += kChunk) {
        const int64_t depth = lesser(kChunk, gates_ - k);
        const bool is_last = k + depth == gates_ && panel + 1 == tile.panels.end;
        const Word<S>* next = stays_near_ ? nullptr
                              : is_last ? weight_hh_ + (tile.group * strips_ + tile.panels.begin) *
                                                           strip_words(gates_)
                                        : weight + strip_words(k + depth);
        const Strips<S> strip = {weight, 0, next, shape_.H - panel * kWidth, words_of<S>(k)};
        multiply_strips(strip, 1, count, depth, k > 0, nullptr, [&](int64_t i) {
          return Operand<S>{rows[i].digates_after + k, dh + i * kWidth};
        });
      }
      for (int v = 0; v < kColumns; ++v) {
        const int64_t unit = panel * kWidth + v * V::kLanes;
        with_lanes<V::kLanes>(unit, shape_.H, [&](auto lanes) {
          if (call_.weight_ch.data) {
            update<true>(rows, count, dh + v * V::kLanes, tile.group, unit, lanes, scratch);
          } else {
            update<false>(rows, count, dh + v * V::kLanes, tile.group, unit, lanes, scratch);
          }
        });
      }
    }
  }

  // Lists the rows that step s visits, and those whose dhx is due: T is the step after all.
  // What it does not visit gets zeros in digates.
  int64_t visit_rows(const Tile& tile, int64_t s, Row* rows) const {
    const int64_t H = shape_.H, g = tile.group, t = time_of(g, s);
    const int64_t unit = tile.panels.begin * kWidth;
    const int64_t units = lesser(tile.panels.end * kWidth, H) - unit;
    int64_t count = 0;
    for (int64_t b = tile.rows.begin; b < tile.rows.end; ++b) {
      const Course course(shape_, g, b);
      const bool visits = s < shape_.T && course.visits(t);
      if (s < shape_.T && !visits) {
        S* row = digates(s, b, g);
        for (int gate = 0; gate < 4; ++gate) {
          std::memset(static_cast<void*>(row + gate * H + unit), 0, units * sizeof(S));
        }
      }
      if (!visits) {
        if (s > 0 && course.length > 0 && time_of(g, s - 1) == course.first()) {
          Row& row = rows[count++];
          row.digates_after = digates(s - 1, b, g);
          row.dhx = out(call_.dhx) + state(g, b);
        }
        continue;
      }
      const bool first = t == course.first(), last = t == course.last();
      const int64_t* stride = call_.dy_stride;
      rows[count++] = {
          last ? zeros_ : digates(s - 1, b, g),
          nullptr,
          last && call_.dhy ? in(call_.dhy) + state(g, b) : nullptr,
          call_.dy ? in(call_.dy) + t * stride[0] + b * stride[1] + g * stride[2] : nullptr,
          reserve(t, b, g),
          first ? in(call_.cx) + state(g, b) : reserve(course.before(t), b, g) + 4 * H,
          dc_ + state(g, b),
          digates(s, b, g),
      };
    }
    return count;
  }

  // The gradient of the cell, for the units of one vector in each of the rows.
  template <bool kPeepholes, class Lanes>
  void update(const Row* rows, int64_t count, const Sum<S>* product, int64_t group, int64_t unit,
              Lanes lanes, const Scratch& scratch) const {
    const int64_t H = shape_.H;
    Peepholes<Value> weight, dweight;
    Sum<S>* dw = scratch.dweight_ch + group * 3 * H + unit;
    if constexpr (kPeepholes) {
      const S* w = of_group(call_.weight_ch, group) + unit;
      weight = {V::load(w, lanes), V::load(w + H, lanes), V::load(w + 2 * H, lanes)};
      dweight = {V::load(dw, lanes), V::load(dw + H, lanes), V::load(dw + 2 * H, lanes)};
    }
    for (int64_t r = 0; r < count; ++r, product += kWidth) {
      const Row& row = rows[r];
      Value dh = V::load(product, AllLanes{});
      if (row.dhx) {
        V::store(row.dhx + unit, dh, lanes);
        continue;
      }
      const S* reserve = row.reserve + unit;
      const Gates<Value> gates = {V::load(reserve, lanes), V::load(reserve + H, lanes),
                                  V::load(reserve + 2 * H, lanes), V::load(reserve + 3 * H, lanes)};
      const Value c = V::load(reserve + 4 * H, lanes);
      const Value c_prev = V::load(row.c_prev + unit, lanes);
      if (row.dy) dh += V::load(row.dy + unit, lanes);
      if (row.dhy) dh += V::load(row.dhy + unit, lanes);
      Value dc = V::load(row.dc + unit, lanes);
      const Gates<Value> d =
          cell_backward<V, kPeepholes>(gates, c_prev, c, dh, weight, dc, dweight);
      V::store(row.dc + unit, dc, lanes);
      S* digates = row.digates + unit;
      V::store(digates, d.i, lanes);
      V::store(digates + H, d.f, lanes);
      V::store(digates + 2 * H, d.g, lanes);
      V::store(digates + 3 * H, d.o, lanes);
    }
    if constexpr (kPeepholes) {
      V::store(dw, dweight.i, lanes);
      V::store(dw + H, dweight.f, lanes);
      V::store(dw + 2 * H, dweight.o, lanes);
    }
  }

  // What a block of one group adds to the gradients of its weights, and its dx.
  void gradients(Team& team, int64_t group, Range block) const {
    const int64_t rows = (block.end - block.begin) * shape_.B;
    Chunk& chunk = chunks_[team.thread()];
    for (int64_t first = 0; first < rows; first += kChunk) {
      chunk.count = lesser(kChunk, rows - first);
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

  void list_row(Chunk& chunk, int64_t i, int64_t g, int64_t s, int64_t b) const {
    const int64_t t = time_of(g, s), *stride = call_.input_stride;
    const Course course(shape_, g, b);
    const bool visits = course.visits(t);
    chunk.digates[i] = digates(s, b, g);
    chunk.dx[i] = call_.dinput && shape_.I ? dinput(t, b, g) : nullptr;
    chunk.x[i] = chunk.h[i] = zeros_;
    if (!visits) return;
    if (shape_.I) {
      chunk.x[i] = in(call_.input) + t * stride[0] + b * stride[1] + g * stride[2];
    }
    chunk.h[i] = t == course.first() ? in(call_.hx) + state(g, b)
                                     : in(call_.y) + row_of(course.before(t), b, g) * shape_.H;
  }

  // The rows of digates in blocks, for dx: each thread packs some of the 4H in chunks.
  void pack_digates(const Team& team, const Chunk& chunk) const {
    const Range mine = share(ceil_div(gates_, kChunk), team.thread(), team.size());
    for (int64_t i = mine.begin; i < mine.end; ++i) {
      const int64_t k = i * kChunk;
      pack_row_blocks<S>(
          chunk.count, lesser(kChunk, gates_ - k),
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
                look_ahead ? strip + strip_words(depth) : nullptr, depth, c, direct && !begins);
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
    Word<S>* packed = weight_ih_ + team.thread() * kInputStrips * strip_words(kChunk);
    Sum<S>* dx = dx_ + team.thread() * kInputStrips * kWidth * kChunk;
    for (int64_t strip = strips.begin; strip < strips.end; strip += kInputStrips) {
      const int size = static_cast<int>(lesser(kInputStrips, strips.end - strip));
      const Word<S>* whole = weight_ih_ + (group * input_strips_ + strip) * strip_words(gates_);
      for (int64_t k = 0; k < gates_; k += kChunk) {
        const int64_t depth = lesser(kChunk, gates_ - k);
        Strips<S> part = {whole, strip_words(gates_), nullptr, shape_.I - strip * kWidth,
                          words_of<S>(k)};
        if (packs_ih_) {
          part.next = k + depth < gates_ ? whole + strip_words(k + depth) : nullptr;
        } else {
          pack_rows<S>([&](int64_t i) { return weight + (k + i) * shape_.I; }, depth,
                       strip * kWidth, shape_.I, size, packed);
          part = {packed, strip_words(depth), nullptr, part.columns};
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

  // Adds up what the threads have summed, in their order: the same bits at every run.
  void sum_dweight_ch(const Team& team) const {
    const Range mine = share(dweight_ch_size(), team.thread(), team.size());
    for (int64_t i = mine.begin; i < mine.end; ++i) {
      Sum<S> sum = 0;
      for (int thread = 0; thread < team.size(); ++thread) {
        sum += dweight_ch_[thread * dweight_ch_size() + i];
      }
      static_cast<Sum<S>*>(call_.dweight_ch)[i] = sum;
    }
  }

  // Calls visit(row of the batch, hidden unit, lanes) for every vector of a tile's state.
  template <class Visit>
  void for_each_vector(const Tile& tile, const Visit& visit) const {
    for (int64_t b = tile.rows.begin; b < tile.rows.end; ++b) {
      for (int64_t unit = tile.panels.begin * kWidth; unit < tile.panels.end * kWidth;
           unit += V::kLanes) {
        with_lanes<V::kLanes>(unit, shape_.H, [&](auto lanes) { visit(b, unit, lanes); });
      }
    }
  }

  static const S* in(const void* pointer) { return static_cast<const S*>(pointer); }
  static S* out(void* pointer) { return static_cast<S*>(pointer); }
  static const S* of_group(const LstmWeight& weight, int64_t group) {
    return in(weight.data) + group * weight.stride;
  }

  // Step s = 0 is the last one of the forward pass.
  int64_t time_of(int64_t group, int64_t s) const {
    return shape_.reverse[group] ? s : shape_.T - 1 - s;
  }
  int64_t row_of(int64_t t, int64_t b, int64_t g) const {
    return (t * shape_.B + b) * shape_.G + g;
  }
  int64_t state(int64_t g, int64_t b) const { return (g * shape_.B + b) * shape_.H; }
  const S* reserve(int64_t t, int64_t b, int64_t g) const {
    return in(call_.reserve) + row_of(t, b, g) * 5 * shape_.H;
  }
  // In the caller's memory if digates were asked for, else in a ring: a block, and the step before.
  S* digates(int64_t s, int64_t b, int64_t g) const {
    if (call_.dinput && !shape_.I) {
      return out(call_.dinput) + row_of(time_of(g, s), b, g) * gates_;
    }
    return digates_ + ((g * (block_ + 1) + s % (block_ + 1)) * shape_.B + b) * digates_stride_;
  }
  S* dinput(int64_t t, int64_t b, int64_t g) const {
    const int64_t* stride = call_.dinput_stride;
    return out(call_.dinput) + t * stride[0] + b * stride[1] + g * stride[2];
  }
  // The groups share x, and each adds to dx in its own order of time.
  bool sums_dx() const {
    return call_.dinput && shape_.I && shape_.G > 1 && call_.dinput_stride[2] == 0;
  }
  // Peepholes or not is unknown when the workspace is measured: there is always room.
  int64_t dweight_ch_size() const { return shape_.G * 3 * shape_.H; }

  const LstmBackward& call_;
  const LstmShape& shape_;
  const int64_t gates_;           // 4H
  const int64_t digates_stride_;  // of the ring: an odd number of cache lines, for rows a power of
                                  // two apart would share few sets of the cache
  const int64_t strips_;          // of hidden units
  const int64_t input_strips_;    // of columns of x
  const bool packs_ih_;
  const int threads_;
  const bool stays_near_;
  int64_t block_;  // steps
  Progress* progress_;
  Row* rows_;
  Chunk* chunks_;
  S* zeros_;
  Sum<S>* dc_;
  Sum<S>* dh_;
  Sum<S>* dweight_ch_;
  Word<S>* weight_hh_;
  S* digates_;
  Word<S>* slivers_;
  Word<S>* digates_blocks_;
  Word<S>* operands_;
  Word<S>* weight_ih_;
  Sum<S>* dx_;
  size_t workspace_bytes_;
};

}  // namespace

size_t backward_workspace(const LstmShape& shape, int num_threads) {
  LstmBackward call{};
  call.shape = shape;
  return with_stored(shape.dtype, [&](auto stored) {
    return Backward<decltype(stored)>(call, num_threads).workspace_bytes();
  });
}

void backward(const LstmBackward& call, int num_threads) {
  with_stored(call.shape.dtype,
              [&](auto stored) { Backward<decltype(stored)>(call, num_threads).run(); });
}

}  // namespace fastlstm::cpu::FASTLSTM_ISA

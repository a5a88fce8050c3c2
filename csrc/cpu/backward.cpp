// The backward pass, compiled once per instruction set: here the recurrence, backwards in time.
//
// Time runs in blocks, from the last forward step to the first. Within a block the recurrence comes
// first: a step of a tile is, for each strip of hidden units, the product of the later step's
// digates with W_hh, and then the cell's gradient on it, which adds to that of the peepholes. dc
// lives beside it in full precision. Then the block's digates, still in cache, go into the
// gradients of the weights and of the input: gradients.h.
#include "arrays.h"
#include "gradients.h"
#include "kernels.h"
#include "products.h"

namespace fastlstm::cpu::FASTLSTM_ISA {
namespace {

template <class S>
class Backward : Arrays<S> {
  using Arrays<S>::in, Arrays<S>::out, Arrays<S>::of_group, Arrays<S>::time_from_end,
      Arrays<S>::offset, Arrays<S>::row_of, Arrays<S>::state, Arrays<S>::for_each_vector,
      Arrays<S>::shape_;
  using V = Simd<Sum<S>>;
  using Value = typename V::Value;
  static constexpr int kWidth = kStripWidth<S>;

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

 public:
  Backward(const LstmBackward& call, int num_threads)
      : Arrays<S>(call.shape),
        call_(call),
        gates_(4 * shape_.H),
        widest_(shape_.I > gates_ ? shape_.I : gates_),
        strips_(ceil_div(shape_.H, kWidth)),
        block_(lesser(ceil_div(kChunk<S>, shape_.B + 1), shape_.T)),
        threads_(worthwhile_threads(shape_, num_threads, 2)),
        stays_near_(plan_for(threads_).stays_near),
        workspace_(call.workspace),
        progress_(workspace_.take<Progress>(threads_)),
        rows_(workspace_.take<Row>(threads_ * shape_.B)),
        zeros_(workspace_.take<S>(widest_)),
        dc_(workspace_.take<Sum<S>>(shape_.G * shape_.B * shape_.H)),
        dh_(workspace_.take<Sum<S>>(threads_ * shape_.B * kWidth)),
        dweight_ch_(workspace_.take<Sum<S>>(threads_ * dweight_ch_size())),
        weight_hh_(workspace_.take<Word<S>>(shape_.G * strips_ * strip_words<S>(gates_))),
        digates_(call, block_, workspace_),
        gradients_(call, digates_, zeros_, threads_, workspace_) {}

  size_t workspace_bytes() const { return workspace_.bytes(); }

  void run() const {
    std::memset(static_cast<void*>(zeros_), 0, widest_ * sizeof(S));
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
      gradients_.prepare(team);
      for_each_tile([&](const Tile& tile) { start(tile); });
      team.barrier();
      for (int64_t first = 0; first < shape_.T; first += block_) {
        const Range block = {first, lesser(first + block_, shape_.T)};
        plan.for_each_step(shape_, team, block,
                           [&](const Tile& tile, int64_t s) { step(tile, s, scratch); });
        if (plan.by_rows) team.barrier();
        for (int64_t group = 0; group < shape_.G; ++group) gradients_.add(team, group, block);
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

  Plan plan_for(int threads) const {
    const int64_t weight_bytes = strips_ * strip_words<S>(gates_) * sizeof(Word<S>);
    return Plan(shape_, threads, strips_, weight_bytes);
  }

  // Packs W_hh, and clears what is summed up.
  void prepare(const Team& team, const Scratch& scratch) const {
    const Range mine = share(shape_.G * strips_, team.thread(), team.size());
    for (int64_t i = mine.begin; i < mine.end; ++i) {
      const S* weight = of_group(call_.weight_hh, i / strips_);
      pack_rows<S>([&](int64_t k) { return weight + k * shape_.H; }, gates_, i % strips_ * kWidth,
                   shape_.H, 1, weight_hh_ + i * strip_words<S>(gates_));
    }
    for (int64_t i = 0; i < dweight_ch_size(); ++i) scratch.dweight_ch[i] = 0;
  }

  // dc of the last step; and a row that has no step at all hands on.
  void start(const Tile& tile) const {
    for_each_vector(tile, kWidth, [&](int64_t b, int64_t unit, auto lanes) {
      const int64_t at = state(tile.group, b) + unit;
      const Value zero = {};
      V::store(dc_ + at, call_.dcy ? V::load(in(call_.dcy) + at, lanes) : zero, lanes);
      if (Course(shape_, tile.group, b).length == 0) {
        V::store(out(call_.dhx) + at, call_.dhy ? V::load(in(call_.dhy) + at, lanes) : zero, lanes);
      }
    });
  }

  void end(const Tile& tile) const {
    for_each_vector(tile, kWidth, [&](int64_t b, int64_t unit, auto lanes) {
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
      const Word<S>* weight = weight_hh_ + (tile.group * strips_ + panel) * strip_words<S>(gates_);
      for (int64_t k = 0; s > 0 && k < gates_; k += kChunk<S>) {
        const int64_t depth = lesser(kChunk<S>, gates_ - k);
        const bool is_last = k + depth == gates_ && panel + 1 == tile.panels.end;
        const Word<S>* next = stays_near_ ? nullptr
                              : is_last ? weight_hh_ + (tile.group * strips_ + tile.panels.begin) *
                                                           strip_words<S>(gates_)
                                        : weight + strip_words<S>(k + depth);
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
    const int64_t H = shape_.H, g = tile.group, t = time_from_end(g, s);
    const int64_t unit = tile.panels.begin * kWidth;
    const int64_t units = lesser(tile.panels.end * kWidth, H) - unit;
    int64_t count = 0;
    for (int64_t b = tile.rows.begin; b < tile.rows.end; ++b) {
      const Course course(shape_, g, b);
      const bool visits = s < shape_.T && course.visits(t);
      if (s < shape_.T && !visits) {
        S* row = digates_.row(s, b, g);
        for (int gate = 0; gate < 4; ++gate) {
          std::memset(static_cast<void*>(row + gate * H + unit), 0, units * sizeof(S));
        }
      }
      if (!visits) {
        if (s > 0 && course.length > 0 && time_from_end(g, s - 1) == course.first()) {
          Row& row = rows[count++];
          row.digates_after = digates_.row(s - 1, b, g);
          row.dhx = out(call_.dhx) + state(g, b);
        }
        continue;
      }
      const bool first = t == course.first(), last = t == course.last();
      rows[count++] = {
          last ? zeros_ : digates_.row(s - 1, b, g),
          nullptr,
          last && call_.dhy ? in(call_.dhy) + state(g, b) : nullptr,
          call_.dy ? in(call_.dy) + offset(call_.dy_stride, t, b, g) : nullptr,
          reserve(t, b, g),
          first ? in(call_.cx) + state(g, b) : reserve(course.before(t), b, g) + 4 * H,
          dc_ + state(g, b),
          digates_.row(s, b, g),
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
      weight = load_peepholes<V>(of_group(call_.weight_ch, group) + unit, H, lanes);
      dweight = load_peepholes<V>(dw, H, lanes);
    }
    for (int64_t r = 0; r < count; ++r, product += kWidth) {
      const Row& row = rows[r];
      Value dh = V::load(product, AllLanes{});
      if (row.dhx) {
        V::store(row.dhx + unit, dh, lanes);
        continue;
      }
      const S* reserve = row.reserve + unit;
      const Gates<Value> gates = load_gates<V>(reserve, H, lanes);
      const Value c = V::load(reserve + 4 * H, lanes);
      const Value c_prev = V::load(row.c_prev + unit, lanes);
      if (row.dy) dh += V::load(row.dy + unit, lanes);
      if (row.dhy) dh += V::load(row.dhy + unit, lanes);
      Value dc = V::load(row.dc + unit, lanes);
      const Gates<Value> d =
          cell_backward<V, kPeepholes>(gates, c_prev, c, dh, weight, dc, dweight);
      V::store(row.dc + unit, dc, lanes);
      store_gates<V>(row.digates + unit, H, d, lanes);
    }
    if constexpr (kPeepholes) {
      V::store(dw, dweight.i, lanes);
      V::store(dw + H, dweight.f, lanes);
      V::store(dw + 2 * H, dweight.o, lanes);
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

  const S* reserve(int64_t t, int64_t b, int64_t g) const {
    return in(call_.reserve) + row_of(t, b, g) * 5 * shape_.H;
  }
  // Peepholes or not is unknown when the workspace is measured: there is always room.
  int64_t dweight_ch_size() const { return shape_.G * 3 * shape_.H; }

  const LstmBackward& call_;
  const int64_t gates_;   // 4H
  const int64_t widest_;  // the wider of I and 4H
  const int64_t strips_;  // of hidden units
  const int64_t block_;   // steps
  const int threads_;
  const bool stays_near_;
  Workspace workspace_;  // its pieces are taken in the order of the members below
  Progress* const progress_;
  Row* const rows_;
  S* const zeros_;  // (widest)
  Sum<S>* const dc_;
  Sum<S>* const dh_;
  Sum<S>* const dweight_ch_;
  Word<S>* const weight_hh_;
  const Digates<S> digates_;
  const Gradients<S> gradients_;
};

}  // namespace

size_t backward_workspace(const LstmShape& shape, int num_threads) {
  return workspace_for<Backward, LstmBackward>(shape, num_threads);
}

void backward(const LstmBackward& call, int num_threads) {
  with_stored(call.shape.dtype,
              [&](auto stored) { Backward<decltype(stored)>(call, num_threads).run(); });
}

}  // namespace fastlstm::cpu::FASTLSTM_ISA

// The forward pass, compiled once per instruction set.
//
// Pre-activations live in cells: the four gates of one vector of hidden units in one row at one
// step. Time runs in blocks. For each block a thread projects the input of its tiles into cells
// (so igates never leave its cache), then goes through the steps: to the cells of a step it adds
// h' W_hh^T, and on the sums it computes the LSTM cell. h' is the row of y that the step before
// wrote; nothing is copied.
//
// A call of few products per weight packs nothing: it would read each weight twice to use it once.
// It fills the cells by dot products with the weights as they lie.
#include "arrays.h"
#include "kernels.h"
#include "products.h"

namespace fastlstm::cpu::FASTLSTM_ISA {
namespace {

// Cells of one block of time, per thread: half of a usual L2.
constexpr int64_t kBlockBytes = 256 * 1024;
// Rows of h' that are read as they lie: half of a usual L1.
constexpr int64_t kRowBytes = 16 * 1024;
// Rows that a block should have at least, so that W_ih is not read too often.
constexpr int64_t kBlockRows = 192;

template <class S>
class Forward : Arrays<S> {
  using Arrays<S>::in, Arrays<S>::out, Arrays<S>::of_group, Arrays<S>::time_of, Arrays<S>::offset,
      Arrays<S>::row_of, Arrays<S>::state, Arrays<S>::for_each_vector, Arrays<S>::shape_;
  using V = Simd<Sum<S>>;
  using Value = typename V::Value;
  static constexpr int kUnits = kLanes<S>;
  static constexpr int kCell = kPanelWidth<S>;
  // Where a row of the batch finds its data at one step; each pointer to hidden unit 0.
  struct Row {
    int64_t row;  // of its tile
    const S* h;   // (H) h'
    Sum<S>* c;    // (H) c' becomes c
    S* y;         // (H)
    S* reserve;   // (5H) or null
  };

 public:
  Forward(const LstmForward& call, int num_threads)
      : Arrays<S>(call.shape),
        call_(call),
        panels_(ceil_div(shape_.H, kUnits)),
        streaming_(!call.packed && streams(shape_)),
        threads_(worthwhile_threads(shape_, num_threads, 1)) {
    const Plan plan = plan_for(threads_);
    stays_near_ = plan.stays_near;
    const int64_t cells = plan.cells(shape_), rows = plan.by_rows ? cells / panels_ : shape_.B;
    block_ = kBlockBytes / (cells * kCell * int64_t{sizeof(Sum<S>)} + 1);
    if (block_ * rows < kBlockRows) block_ = ceil_div(kBlockRows, rows + 1);
    // All at once where igates take less room than W_ih, which is then packed bit by bit in L1.
    const bool at_once = shape_.T * shape_.B <= shape_.I && !plan.by_rows;
    if (block_ > shape_.T || at_once) block_ = shape_.T;
    packs_ih_ = shape_.I && !call.packed && !streaming_ && (block_ < shape_.T || plan.by_rows);

    Workspace workspace(call.workspace);
    progress_ = workspace.take<Progress>(threads_);
    rows_ = workspace.take<Row>(threads_ * shape_.B);
    inputs_ = workspace.take<const S*>(threads_ * shape_.B * block_);
    c_ = workspace.take<Sum<S>>(shape_.G * shape_.B * shape_.H);
    bias_ = workspace.take<Sum<S>>(shape_.G * panels_ * kCell);
    cells_ = workspace.take<Sum<S>>(Plan::most_cells(shape_, threads_, panels_) * block_ * kCell);
    chunks_ = workspace.take<Word<S>>(threads_ * panel_words<S>(kChunk<S>));
    row_blocks_ = workspace.take<Word<S>>(threads_ * row_block_words());
    Workspace kept(call.packed);
    Workspace& home = call.packed ? kept : workspace;
    weight_hh_ = home.take<Word<S>>(streaming_ ? 0 : shape_.G * panels_ * panel_words<S>(shape_.H));
    const bool has_ih = packs_ih_ || call.packed;
    weight_ih_ = home.take<Word<S>>(has_ih ? shape_.G * panels_ * panel_words<S>(shape_.I) : 0);
    workspace_bytes_ = workspace.bytes();
  }

  size_t workspace_bytes() const { return workspace_bytes_; }

  // Whether weights are read as they lie: for few rows of T times B. The break-even is 16 rows at
  // H = 128 and 256, and 32 where packing goes through memory (4,200 x 1,055: 3.8 ms against 4.2
  // with 22 rows). Dot products of bfloat16 take two steps in float.
  static bool streams(const LstmShape& shape) {
    if (Format<S>::kPerWord == 2) return shape.T * shape.B <= 6;
    const int64_t bytes = 4 * shape.H * (shape.I + shape.H) * int64_t{sizeof(S)};
    return shape.T * shape.B <= (bytes > 8 * 1024 * 1024 ? 32 : 16);
  }

  static size_t packed_bytes(const LstmShape& shape) {
    Workspace kept(nullptr);
    const int64_t panels = shape.G * ceil_div(shape.H, kUnits);
    kept.take<Word<S>>(panels * panel_words<S>(shape.H));
    kept.take<Word<S>>(panels * panel_words<S>(shape.I));
    return kept.bytes();
  }

  void run() const {
    run_team(progress_, threads_, [this](Team team) {
      prepare(team);
      team.barrier();
      const Plan plan = plan_for(team.size());
      const auto for_each_tile = [&](const auto& visit) {
        plan.for_each_tile(shape_, team.thread(), visit);
      };
      const int64_t width = plan.cells(shape_) * block_ * kCell;
      const Scratch scratch = {
          rows_ + team.thread() * shape_.B,
          inputs_ + team.thread() * shape_.B * block_,
          cells_ + team.thread() * width,
          chunks_ + team.thread() * panel_words<S>(kChunk<S>),
          row_blocks_ + team.thread() * row_block_words(),
      };
      for_each_tile([&](const Tile& tile) { start(tile); });
      plan.for_each_step(shape_, team, {0, shape_.T}, [&](const Tile& tile, int64_t s) {
        if (s % block_ == 0) project(tile, block_at(s), scratch);
        step(tile, s, scratch);
      });
      for_each_tile([&](const Tile& tile) { end(tile); });
    });
  }

 private:
  struct Scratch {
    Row* rows;
    const S** inputs;
    Sum<S>* cells;
    Word<S>* chunk;
    Word<S>* blocks;  // packed rows, of x or of h'
  };

  // Room for a chunk of all inputs of a block, or for all of h'.
  int64_t row_block_words() const {
    const int64_t x = shape_.B * block_ * block_words<S>(lesser(kChunk<S>, shape_.I));
    const int64_t h = shape_.B * block_words<S>(shape_.H);
    return x > h ? x : h;
  }
  Plan plan_for(int threads) const {
    const int64_t weight_bytes = panels_ * panel_words<S>(shape_.H) * sizeof(Word<S>);
    Plan plan(shape_, threads, panels_, weight_bytes);
    if (streaming_ && shape_.G * panels_ >= threads) plan.by_rows = false;  // read weights once
    return plan;
  }
  Range block_at(int64_t s) const { return {s, lesser(s + block_, shape_.T)}; }

  // Packs the weights, and adds up the biases in the order of the cells.
  void prepare(const Team& team) const {
    const int64_t H = shape_.H, I = shape_.I;
    const Range mine = share(shape_.G * panels_, team.thread(), team.size());
    for (int64_t i = mine.begin; i < mine.end; ++i) {
      const int64_t group = i / panels_, unit = i % panels_ * kUnits;
      if (!streaming_ && !call_.is_packed) {
        const S* weight = of_group(call_.weight_hh, group);
        pack_gates(weight, H, H, unit, 0, H, weight_hh_ + i * panel_words<S>(H));
      }
      if (packs_ih_ || (call_.packed && !call_.is_packed && I)) {
        const S* weight = of_group(call_.weight_ih, group);
        pack_gates(weight, H, I, unit, 0, I, weight_ih_ + i * panel_words<S>(I));
      }
      with_lanes<kUnits>(unit, H, [&](auto lanes) {
        for (int gate = 0; gate < 4; ++gate) {
          Value sum = {};
          for (const LstmWeight* bias : {&call_.bias_ih, &call_.bias_hh}) {
            if (bias->data) sum += V::load(of_group(*bias, group) + gate * H + unit, lanes);
          }
          V::store(bias_ + i * kCell + gate * kUnits, sum, AllLanes{});
        }
      });
    }
  }

  void start(const Tile& tile) const {
    for_each_vector(tile, kUnits, [&](int64_t b, int64_t unit, auto lanes) {
      const int64_t at = state(tile.group, b) + unit;
      V::store(c_ + at, V::load(in(call_.cx) + at, lanes), lanes);
    });
  }

  void end(const Tile& tile) const {
    for_each_vector(tile, kUnits, [&](int64_t b, int64_t unit, auto lanes) {
      const Course course(shape_, tile.group, b);
      const int64_t at = state(tile.group, b) + unit;
      const S* h = course.length > 0 ? y(course.last(), b, tile.group) + unit : in(call_.hx) + at;
      V::store(out(call_.hy) + at, V::load(h, lanes), lanes);
      V::store(out(call_.cy) + at, V::load(c_ + at, lanes), lanes);
    });
  }

  // Fills the cells of a block of steps with x W_ih^T, or with igates as they came.
  void project(const Tile& tile, Range block, const Scratch& scratch) const {
    const int64_t rows = tile.num_rows(), count = (block.end - block.begin) * rows;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t t = time_of(tile.group, block.begin + i / rows), b = tile.rows.begin + i % rows;
      scratch.inputs[i] = in(call_.input) + offset(call_.input_stride, t, b, tile.group);
    }
    if (shape_.I == 0) return gather(tile, block, scratch);
    for (int64_t panel = tile.panels.begin; streaming_ && panel < tile.panels.end; ++panel) {
      Sum<S>* cells = cell(tile, panel, 0, 0, scratch);
      dot_gates(of_group(call_.weight_ih, tile.group), shape_.H, shape_.I, panel * kUnits, count,
                false, [&](int64_t i) { return Operand<S>{scratch.inputs[i], cells + i * kCell}; });
    }
    for (int64_t k = 0; !streaming_ && k < shape_.I; k += kChunk<S>) {
      const int64_t depth = lesser(kChunk<S>, shape_.I - k);
      pack_row_blocks<S>(
          count, depth, [&](int64_t i) { return scratch.inputs[i] + k; }, scratch.blocks);
      for (int64_t panel = tile.panels.begin; panel < tile.panels.end; ++panel) {
        Strips<S> strips;
        if (packs_ih_ || call_.packed) {
          const auto at = [&](int64_t p, int64_t d) {
            return packed(weight_ih_, shape_.I, tile.group, p, d);
          };
          strips = {at(panel, k), strip_words<S>(shape_.I), nullptr, kCell};
          if (panel + 1 < tile.panels.end)
            strips.next = at(panel + 1, k);
          else if (k + depth < shape_.I)
            strips.next = at(tile.panels.begin, k + depth);
        } else {
          pack_gates(of_group(call_.weight_ih, tile.group), shape_.H, shape_.I, panel * kUnits, k,
                     depth, scratch.chunk);
          strips = {scratch.chunk, strip_words<S>(depth), nullptr, kCell};
        }
        Sum<S>* cells = cell(tile, panel, 0, 0, scratch);
        multiply_strips(strips, kStrips, count, depth, k > 0, scratch.blocks, [&](int64_t i) {
          return Operand<S>{scratch.inputs[i] + k, cells + i * kCell};
        });
      }
    }
  }

  // Copies igates into cells.
  void gather(const Tile& tile, Range block, const Scratch& scratch) const {
    const int64_t count = (block.end - block.begin) * tile.num_rows();
    for (int64_t panel = tile.panels.begin; panel < tile.panels.end; ++panel) {
      with_lanes<kUnits>(panel * kUnits, shape_.H, [&](auto lanes) {
        Sum<S>* to = cell(tile, panel, 0, 0, scratch);
        for (int64_t i = 0; i < count; ++i, to += kCell) {
          for (int gate = 0; gate < 4; ++gate) {
            const S* from = scratch.inputs[i] + gate * shape_.H + panel * kUnits;
            V::store(to + gate * kUnits, V::load(from, lanes), AllLanes{});
          }
        }
      });
    }
  }

  void step(const Tile& tile, int64_t s, const Scratch& scratch) const {
    const Row* rows = scratch.rows;
    const int64_t count = visit_rows(tile, s, scratch.rows), H = shape_.H, at = s % block_;
    // Many rows are packed once for all panels. Few are in L1 anyway.
    const bool packs_rows = !streaming_ && count * H * int64_t{sizeof(S)} > kRowBytes;
    for (int64_t k = 0; packs_rows && k < H; k += kChunk<S>) {
      pack_row_blocks<S>(
          count, lesser(kChunk<S>, H - k), [&](int64_t i) { return rows[i].h + k; },
          scratch.blocks + words_of<S>(k) * count);
    }
    for (int64_t panel = tile.panels.begin; panel < tile.panels.end; ++panel) {
      Sum<S>* cells = cell(tile, panel, at, 0, scratch);
      for (int64_t k = 0; !streaming_ && k < H; k += kChunk<S>) {
        const auto weight_at = [&](int64_t p, int64_t depth) {
          return packed(weight_hh_, H, tile.group, p, depth);
        };
        Strips<S> strips = {weight_at(panel, k), strip_words<S>(H), nullptr, kCell};
        // One or two rows read the weights as fast as L3 gives them, and faster without requests
        // of our own on top: 72 ms against 84 for 1000 steps of two layers of 512.
        if (stays_near_ || count <= 2) {
          strips.next = nullptr;
        } else if (k + kChunk<S> < H) {
          strips.next = weight_at(panel, k + kChunk<S>);
        } else {
          strips.next = weight_at(panel + 1 < tile.panels.end ? panel + 1 : tile.panels.begin, 0);
        }
        multiply_strips(
            strips, kStrips, count, lesser(kChunk<S>, H - k), true,
            packs_rows ? scratch.blocks + words_of<S>(k) * count : nullptr,
            [&](int64_t i) { return Operand<S>{rows[i].h + k, cells + rows[i].row * kCell}; });
      }
      const int64_t unit = panel * kUnits;
      const Sum<S>* bias = bias_ + (tile.group * panels_ + panel) * kCell;
      if (streaming_) {
        dot_gates(of_group(call_.weight_hh, tile.group), H, H, unit, count, true,
                  [&](int64_t i) { return Operand<S>{rows[i].h, cells + rows[i].row * kCell}; });
      }
      with_lanes<kUnits>(unit, H, [&](auto lanes) {
        if (call_.weight_ch.data) {
          update<true>(rows, count, cells, bias, tile.group, unit, lanes);
        } else {
          update<false>(rows, count, cells, bias, tile.group, unit, lanes);
        }
      });
    }
  }

  // Lists the rows that step s visits. Those that it does not visit get zeros in y.
  int64_t visit_rows(const Tile& tile, int64_t s, Row* rows) const {
    const int64_t g = tile.group, t = time_of(g, s);
    const int64_t unit = tile.panels.begin * kUnits;
    const int64_t units = lesser(tile.panels.end * kUnits, shape_.H) - unit;
    int64_t count = 0;
    for (int64_t b = tile.rows.begin; b < tile.rows.end; ++b) {
      const Course course(shape_, g, b);
      if (!course.visits(t)) {
        std::memset(y(t, b, g) + unit, 0, units * sizeof(S));
        continue;
      }
      rows[count++] = {
          b - tile.rows.begin,
          t == course.first() ? in(call_.hx) + state(g, b) : y(course.before(t), b, g),
          c_ + state(g, b),
          y(t, b, g),
          call_.reserve ? out(call_.reserve) + row_of(t, b, g) * 5 * shape_.H : nullptr,
      };
    }
    return count;
  }

  // The LSTM cell, for the units of one vector in each of the rows.
  template <bool kPeepholes, class Lanes>
  void update(const Row* rows, int64_t count, const Sum<S>* cells, const Sum<S>* bias,
              int64_t group, int64_t unit, Lanes lanes) const {
    const int64_t H = shape_.H;
    Peepholes<Value> weight;
    if constexpr (kPeepholes) {
      weight = load_peepholes<V>(of_group(call_.weight_ch, group) + unit, H, lanes);
    }
    const auto biased = [&](const Sum<S>* from, int gate) {
      return V::load(from + gate * kUnits, AllLanes{}) + V::load(bias + gate * kUnits, AllLanes{});
    };
    for (int64_t r = 0; r < count; ++r) {
      const Sum<S>* from = cells + rows[r].row * kCell;
      Gates<Value> gates = {biased(from, 0), biased(from, 1), biased(from, 2), biased(from, 3)};
      Value c = V::load(rows[r].c + unit, lanes);
      const Value h = cell_forward<V, kPeepholes>(gates, weight, c);
      V::store(rows[r].c + unit, c, lanes);
      V::store(rows[r].y + unit, h, lanes);
      if (rows[r].reserve) {
        S* reserve = rows[r].reserve + unit;
        store_gates<V>(reserve, H, gates, lanes);
        V::store(reserve + 4 * H, c, lanes);
      }
    }
  }

  S* y(int64_t t, int64_t b, int64_t g) const { return out(call_.y) + row_of(t, b, g) * shape_.H; }

  // The cell of a row at step `at` of the block; those of a panel lie together, step by step.
  Sum<S>* cell(const Tile& tile, int64_t panel, int64_t at, int64_t row,
               const Scratch& scratch) const {
    const int64_t before = tile.cells + (panel - tile.panels.begin) * tile.num_rows();
    return scratch.cells + (before * block_ + at * tile.num_rows() + row) * kCell;
  }
  // A panel of packed weights (G, panels, strips, depth), from depth k on.
  const Word<S>* packed(const Word<S>* weight, int64_t depth, int64_t group, int64_t panel,
                        int64_t k) const {
    return weight + (group * panels_ + panel) * panel_words<S>(depth) + strip_words<S>(k);
  }

  const LstmForward& call_;
  const int64_t panels_;
  const bool streaming_;
  const int threads_;
  bool stays_near_;
  int64_t block_;  // steps
  bool packs_ih_;  // whole, before the first step
  Progress* progress_;
  Row* rows_;
  const S** inputs_;
  Sum<S>* c_;
  Sum<S>* bias_;
  Sum<S>* cells_;
  Word<S>* chunks_;
  Word<S>* row_blocks_;
  Word<S>* weight_hh_;
  Word<S>* weight_ih_;
  size_t workspace_bytes_;
};

}  // namespace

bool forward_streams(const LstmShape& shape) {
  return with_stored(shape.dtype,
                     [&](auto stored) { return Forward<decltype(stored)>::streams(shape); });
}

size_t forward_packed(const LstmShape& shape) {
  return with_stored(shape.dtype,
                     [&](auto stored) { return Forward<decltype(stored)>::packed_bytes(shape); });
}

size_t forward_workspace(const LstmShape& shape, int num_threads) {
  return workspace_for<Forward, LstmForward>(shape, num_threads);
}

void forward(const LstmForward& call, int num_threads) {
  with_stored(call.shape.dtype,
              [&](auto stored) { Forward<decltype(stored)>(call, num_threads).run(); });
}

}  // namespace fastlstm::cpu::FASTLSTM_ISA

// The backward recurrence, compiled once per instruction set.
//
// A step of a tile is, for each panel of hidden columns and each block of rows, the product of the
// later step's digates with W_hh in registers and then the cell's gradient on it. Nothing is
// copied: that product reads the digates row that the previous step wrote, and dc lives in dcx.
// Gradients of W_hh, W_ih and the biases are plain products over all of digates: the caller's.
#include "kernels.h"
#include "schedule.h"

namespace fastlstm::cpu::FASTLSTM_ISA {
namespace {

template <class T>
class Backward {
  using S = Simd<T>;
  using Value = typename S::Value;
  static constexpr int kLanes = S::kLanes;

  // Where a row of the batch finds its data at one step; each pointer to hidden unit 0.
  struct Row {
    const T* digates_after;  // (4H) of the step after this one in the forward order, or zeros
    const T* dhy;            // (H) at the last forward step, else null
    const T* dy;             // (H) or null
    const T* reserve;        // (5H)
    const T* c_prev;         // (H)
    T* dc;                   // (H)
    T* digates;              // (4H)
  };

 public:
  Backward(const LstmBackward& call, int num_threads)
      : call_(call),
        shape_(call.shape),
        panels_(ceil_div(shape_.H, kPanelWidth<T>)),
        panel_size_(4 * shape_.H * kPanelWidth<T>) {
    Workspace workspace(call.workspace);
    progress_ = workspace.take<Progress>(num_threads);
    rows_ = workspace.take<Row>(num_threads * shape_.B);
    zeros_ = workspace.take<T>(4 * shape_.H);
    dweight_ch_ = workspace.take<T>(num_threads * dweight_ch_size());
    packed_ = workspace.take<T>(shape_.G * panels_ * panel_size_);
    workspace_bytes_ = workspace.bytes();
  }

  size_t workspace_bytes() const { return workspace_bytes_; }

  void run(int num_threads) const {
    for (int64_t i = 0; i < 4 * shape_.H; ++i) zeros_[i] = 0;
    run_team(progress_, num_threads, [this](Team team) {
      pack(team);
      T* dweight_ch = dweight_ch_ + team.thread() * dweight_ch_size();
      for (int64_t i = 0; i < dweight_ch_size(); ++i) dweight_ch[i] = 0;
      team.barrier();
      const int64_t weight_bytes = panels_ * panel_size_ * sizeof(T);
      Row* rows = rows_ + team.thread() * shape_.B;
      run_tiles(
          team, shape_, panels_, split_by_rows(shape_, team.size(), panels_, weight_bytes),
          [&](const Tile& tile) { start(tile); },
          [&](const Tile& tile, int64_t s) { step(tile, s, rows, dweight_ch); },
          [&](const Tile& tile) { end(tile); });
      team.barrier();
      sum_dweight_ch(team);
    });
  }

 private:
  void pack(const Team& team) const {
    const Range panels = share(shape_.G * panels_, team.thread(), team.size());
    for (int64_t i = panels.begin; i < panels.end; ++i) {
      const T* weight = in(call_.weight_hh) + i / panels_ * call_.weight_hh_stride;
      pack_backward(weight, shape_.H, i % panels_, packed_ + i * panel_size_);
    }
  }

  void start(const Tile& tile) const {
    const Range units = units_of(tile);
    for (int64_t b = tile.rows.begin; b < tile.rows.end; ++b) {
      const int64_t at = state(tile.group, b);
      for (int64_t u = units.begin; u < units.end; ++u) {
        out(call_.dcx)[at + u] = call_.dcy ? in(call_.dcy)[at + u] : 0;
      }
    }
  }

  // dhx: one more product, with the digates of each row's first step. A row of length 0 hands on.
  void end(const Tile& tile) const {
    const int64_t g = tile.group;
    for (int64_t panel = tile.panels.begin; panel < tile.panels.end; ++panel) {
      const Range units = units_of({g, tile.rows, {panel, panel + 1}});
      for_each_block(tile.rows.end - tile.rows.begin, [&](int64_t first, int size) {
        const T* rows[kMaxRows];
        for (int r = 0; r < size; ++r) {
          const int64_t b = tile.rows.begin + first + r;
          const Course course(shape_, g, b);
          rows[r] = course.length > 0 ? digates(course.first(), b, g) : zeros_;
        }
        alignas(kVectorBytes) T product[kMaxRows * kPanelWidth<T>];
        multiply(size, rows, packed(g, panel), 4 * shape_.H, product);
        for (int r = 0; r < size; ++r) {
          const int64_t at = state(g, tile.rows.begin + first + r);
          const T* dhx = product + r * kPanelWidth<T>;
          if (rows[r] == zeros_ && call_.dhy) dhx = in(call_.dhy) + at + units.begin;
          for (int64_t u = units.begin; u < units.end; ++u) {
            out(call_.dhx)[at + u] = dhx[u - units.begin];
          }
        }
      });
    }
  }

  void step(const Tile& tile, int64_t s, Row* rows, T* dweight_ch) const {
    const auto [count, depth] = gather(tile, s, rows);
    for (int64_t panel = tile.panels.begin; panel < tile.panels.end; ++panel) {
      for_each_block(count, [&, depth = depth](int64_t first, int size) {
        const Row* block = rows + first;
        const T* after[kMaxRows];
        for (int r = 0; r < size; ++r) after[r] = block[r].digates_after;
        alignas(kVectorBytes) T dh[kMaxRows * kPanelWidth<T>];
        multiply(size, after, packed(tile.group, panel), depth, dh);
        for (int v = 0; v < kPanelVectors; ++v) {
          const int64_t unit = panel * kPanelWidth<T> + v * kLanes;
          with_lanes<kLanes>(unit, shape_.H, [&](auto lanes) {
            if (call_.weight_ch) {
              update<true>(block, size, dh + v * kLanes, tile.group, unit, lanes, dweight_ch);
            } else {
              update<false>(block, size, dh + v * kLanes, tile.group, unit, lanes, dweight_ch);
            }
          });
        }
      });
    }
  }

  struct Gathered {
    int64_t count, depth;  // depth of the product: 0 if no row has a later step yet
  };

  // Lists the rows that step s visits. Those that it does not visit get zeros in digates.
  Gathered gather(const Tile& tile, int64_t s, Row* rows) const {
    const int64_t H = shape_.H, g = tile.group, t = shape_.reverse[g] ? s : shape_.T - 1 - s;
    const Range units = units_of(tile);
    Gathered gathered = {0, 0};
    for (int64_t b = tile.rows.begin; b < tile.rows.end; ++b) {
      const Course course(shape_, g, b);
      if (!course.visits(t)) {
        T* row = digates(t, b, g);
        for (int gate = 0; gate < 4; ++gate) {
          for (int64_t u = units.begin; u < units.end; ++u) row[gate * H + u] = 0;
        }
        continue;
      }
      const bool first = t == course.first(), last = t == course.last();
      if (!last) gathered.depth = 4 * H;
      const int64_t* stride = call_.dy_stride;
      rows[gathered.count++] = {
          last ? zeros_ : digates(course.after(t), b, g),
          last && call_.dhy ? in(call_.dhy) + state(g, b) : nullptr,
          call_.dy ? in(call_.dy) + t * stride[0] + b * stride[1] + g * stride[2] : nullptr,
          reserve(t, b, g),
          first ? in(call_.cx) + state(g, b) : reserve(course.before(t), b, g) + 4 * H,
          out(call_.dcx) + state(g, b),
          digates(t, b, g),
      };
    }
    return gathered;
  }

  // The gradient of the cell, for the units of one vector in each row of a block.
  template <bool kPeepholes, class Lanes>
  void update(const Row* rows, int count, const T* product, int64_t group, int64_t unit,
              Lanes lanes, T* dweight_ch) const {
    const int64_t H = shape_.H;
    Peepholes<Value> weight, dweight;
    T* dw = dweight_ch + group * 3 * H + unit;
    if constexpr (kPeepholes) {
      const T* w = in(call_.weight_ch) + group * call_.weight_ch_stride + unit;
      weight = {S::load(w, lanes), S::load(w + H, lanes), S::load(w + 2 * H, lanes)};
      dweight = {S::load(dw, lanes), S::load(dw + H, lanes), S::load(dw + 2 * H, lanes)};
    }
    for (int r = 0; r < count; ++r, product += kPanelWidth<T>) {
      const Row& row = rows[r];
      const T* reserve = row.reserve + unit;
      const Gates<Value> gates = {S::load(reserve, lanes), S::load(reserve + H, lanes),
                                  S::load(reserve + 2 * H, lanes), S::load(reserve + 3 * H, lanes)};
      const Value c = S::load(reserve + 4 * H, lanes);
      const Value c_prev = S::load(row.c_prev + unit, lanes);
      Value dh = S::load(product, AllLanes{});
      if (row.dy) dh += S::load(row.dy + unit, lanes);
      if (row.dhy) dh += S::load(row.dhy + unit, lanes);
      Value dc = S::load(row.dc + unit, lanes);
      const Gates<Value> d =
          cell_backward<S, kPeepholes>(gates, c_prev, c, dh, weight, dc, dweight);
      S::store(row.dc + unit, dc, lanes);
      T* digates = row.digates + unit;
      S::store(digates, d.i, lanes);
      S::store(digates + H, d.f, lanes);
      S::store(digates + 2 * H, d.g, lanes);
      S::store(digates + 3 * H, d.o, lanes);
    }
    if constexpr (kPeepholes) {
      S::store(dw, dweight.i, lanes);
      S::store(dw + H, dweight.f, lanes);
      S::store(dw + 2 * H, dweight.o, lanes);
    }
  }

  // Adds up what the threads have summed, in their order: the same bits at every run.
  void sum_dweight_ch(const Team& team) const {
    const Range mine = share(dweight_ch_size(), team.thread(), team.size());
    for (int64_t i = mine.begin; i < mine.end; ++i) {
      T sum = 0;
      for (int thread = 0; thread < team.size(); ++thread) {
        sum += dweight_ch_[thread * dweight_ch_size() + i];
      }
      out(call_.dweight_ch)[i] = sum;
    }
  }

  static const T* in(const void* pointer) { return static_cast<const T*>(pointer); }
  static T* out(void* pointer) { return static_cast<T*>(pointer); }

  int64_t row_of(int64_t t, int64_t b, int64_t g) const {
    return (t * shape_.B + b) * shape_.G + g;
  }
  T* digates(int64_t t, int64_t b, int64_t g) const {
    return out(call_.digates) + row_of(t, b, g) * 4 * shape_.H;
  }
  const T* reserve(int64_t t, int64_t b, int64_t g) const {
    return in(call_.reserve) + row_of(t, b, g) * 5 * shape_.H;
  }
  int64_t state(int64_t g, int64_t b) const { return (g * shape_.B + b) * shape_.H; }
  const T* packed(int64_t g, int64_t panel) const {
    return packed_ + (g * panels_ + panel) * panel_size_;
  }
  int64_t dweight_ch_size() const { return call_.dweight_ch ? shape_.G * 3 * shape_.H : 0; }

  Range units_of(const Tile& tile) const {
    const int64_t end = tile.panels.end * kPanelWidth<T>;
    return {tile.panels.begin * kPanelWidth<T>, end < shape_.H ? end : shape_.H};
  }

  const LstmBackward& call_;
  const LstmShape& shape_;
  const int64_t panels_, panel_size_;
  Progress* progress_;
  Row* rows_;
  T* zeros_;
  T* dweight_ch_;
  T* packed_;
  size_t workspace_bytes_;
};

}  // namespace

size_t backward_workspace(const LstmShape& shape, int num_threads) {
  LstmBackward call{};
  call.shape = shape;
  call.dweight_ch = &call;  // peepholes or not is unknown here: make room for their sums
  return shape.dtype == DType::float32 ? Backward<float>(call, num_threads).workspace_bytes()
                                       : Backward<double>(call, num_threads).workspace_bytes();
}

void backward(const LstmBackward& call, int num_threads) {
  if (call.shape.dtype == DType::float32) {
    Backward<float>(call, num_threads).run(num_threads);
  } else {
    Backward<double>(call, num_threads).run(num_threads);
  }
}

}  // namespace fastlstm::cpu::FASTLSTM_ISA

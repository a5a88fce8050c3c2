// The forward recurrence, compiled once per instruction set.
//
// A step of a tile is, for each panel of hidden units and each block of rows, the product h' W_hh^T
// in registers and then the cell on it. No state is copied: h' is the row of y that the previous
// step wrote, and c lives in cy.
#include "kernels.h"
#include "schedule.h"

namespace fastlstm::cpu::FASTLSTM_ISA {
namespace {

template <class T>
class Forward {
  using S = Simd<T>;
  using Value = typename S::Value;
  static constexpr int kLanes = S::kLanes;

  // Where a row of the batch finds its data at one step; each pointer to hidden unit 0.
  struct Row {
    const T* h;       // (H) h'
    const T* igates;  // (4H)
    T* c;             // (H) c' becomes c
    T* y;             // (H)
    T* reserve;       // (5H) or null
  };

 public:
  Forward(const LstmForward& call, int num_threads)
      : call_(call),
        shape_(call.shape),
        panels_(ceil_div(shape_.H, kLanes)),
        panel_size_(shape_.H * kPanelWidth<T>) {
    Workspace workspace(call.workspace);
    progress_ = workspace.take<Progress>(num_threads);
    rows_ = workspace.take<Row>(num_threads * shape_.B);
    packed_ = workspace.take<T>(shape_.G * panels_ * panel_size_);
    workspace_bytes_ = workspace.bytes();
  }

  size_t workspace_bytes() const { return workspace_bytes_; }

  void run(int num_threads) const {
    run_team(progress_, num_threads, [this](Team team) {
      pack(team);
      team.barrier();
      const int64_t weight_bytes = panels_ * panel_size_ * sizeof(T);
      Row* rows = rows_ + team.thread() * shape_.B;
      run_tiles(
          team, shape_, panels_, split_by_rows(shape_, team.size(), panels_, weight_bytes),
          [&](const Tile& tile) { start(tile); },
          [&](const Tile& tile, int64_t s) { step(tile, s, rows); },
          [&](const Tile& tile) { end(tile); });
    });
  }

 private:
  void pack(const Team& team) const {
    const Range panels = share(shape_.G * panels_, team.thread(), team.size());
    for (int64_t i = panels.begin; i < panels.end; ++i) {
      const T* weight = in(call_.weight_hh) + i / panels_ * call_.weight_hh_stride;
      pack_forward(weight, shape_.H, i % panels_, packed_ + i * panel_size_);
    }
  }

  void start(const Tile& tile) const {
    const Range units = units_of(tile);
    for (int64_t b = tile.rows.begin; b < tile.rows.end; ++b) {
      const int64_t at = state(tile.group, b);
      for (int64_t u = units.begin; u < units.end; ++u)
        out(call_.cy)[at + u] = in(call_.cx)[at + u];
    }
  }

  void end(const Tile& tile) const {
    const Range units = units_of(tile);
    for (int64_t b = tile.rows.begin; b < tile.rows.end; ++b) {
      const Course course(shape_, tile.group, b);
      const int64_t at = state(tile.group, b);
      const T* h = course.length > 0 ? y(course.last(), b, tile.group) : in(call_.hx) + at;
      for (int64_t u = units.begin; u < units.end; ++u) out(call_.hy)[at + u] = h[u];
    }
  }

  void step(const Tile& tile, int64_t s, Row* rows) const {
    const int64_t count = gather(tile, s, rows);
    for (int64_t panel = tile.panels.begin; panel < tile.panels.end; ++panel) {
      const T* packed = packed_ + (tile.group * panels_ + panel) * panel_size_;
      for_each_block(count, [&](int64_t first, int size) {
        const Row* block = rows + first;
        const T* h[kMaxRows];
        const int64_t unit = panel * kLanes;
        for (int r = 0; r < size; ++r) h[r] = block[r].h;
        alignas(kVectorBytes) T hgates[kMaxRows * kPanelWidth<T>];
        multiply(size, h, packed, shape_.H, hgates);
        with_lanes<kLanes>(unit, shape_.H, [&](auto lanes) {
          if (call_.weight_ch) {
            update<true>(block, size, hgates, tile.group, unit, lanes);
          } else {
            update<false>(block, size, hgates, tile.group, unit, lanes);
          }
        });
      });
    }
  }

  // Lists the rows that step s visits. Those that it does not visit get zeros in y.
  int64_t gather(const Tile& tile, int64_t s, Row* rows) const {
    const int64_t g = tile.group, t = shape_.reverse[g] ? shape_.T - 1 - s : s;
    const Range units = units_of(tile);
    int64_t count = 0;
    for (int64_t b = tile.rows.begin; b < tile.rows.end; ++b) {
      const Course course(shape_, g, b);
      if (!course.visits(t)) {
        for (int64_t u = units.begin; u < units.end; ++u) y(t, b, g)[u] = 0;
        continue;
      }
      const int64_t* stride = call_.igates_stride;
      const int64_t reserve = 5 * shape_.H * ((t * shape_.B + b) * shape_.G + g);
      rows[count++] = {
          t == course.first() ? in(call_.hx) + state(g, b) : y(course.before(t), b, g),
          in(call_.igates) + t * stride[0] + b * stride[1] + g * stride[2],
          out(call_.cy) + state(g, b),
          y(t, b, g),
          call_.reserve ? out(call_.reserve) + reserve : nullptr,
      };
    }
    return count;
  }

  // The cell, for the units of one vector in each row of a block.
  template <bool kPeepholes, class Lanes>
  void update(const Row* rows, int count, const T* hgates, int64_t group, int64_t unit,
              Lanes lanes) const {
    const int64_t H = shape_.H;
    Peepholes<Value> weight;
    if constexpr (kPeepholes) {
      const T* w = in(call_.weight_ch) + group * call_.weight_ch_stride + unit;
      weight = {S::load(w, lanes), S::load(w + H, lanes), S::load(w + 2 * H, lanes)};
    }
    for (int r = 0; r < count; ++r, hgates += kPanelWidth<T>) {
      const T* igates = rows[r].igates + unit;
      Gates<Value> gates = {
          S::load(igates, lanes) + S::load(hgates, AllLanes{}),
          S::load(igates + H, lanes) + S::load(hgates + kLanes, AllLanes{}),
          S::load(igates + 2 * H, lanes) + S::load(hgates + 2 * kLanes, AllLanes{}),
          S::load(igates + 3 * H, lanes) + S::load(hgates + 3 * kLanes, AllLanes{}),
      };
      Value c = S::load(rows[r].c + unit, lanes);
      const Value h = cell_forward<S, kPeepholes>(gates, weight, c);
      S::store(rows[r].c + unit, c, lanes);
      S::store(rows[r].y + unit, h, lanes);
      if (rows[r].reserve) {
        T* reserve = rows[r].reserve + unit;
        S::store(reserve, gates.i, lanes);
        S::store(reserve + H, gates.f, lanes);
        S::store(reserve + 2 * H, gates.g, lanes);
        S::store(reserve + 3 * H, gates.o, lanes);
        S::store(reserve + 4 * H, c, lanes);
      }
    }
  }

  static const T* in(const void* pointer) { return static_cast<const T*>(pointer); }
  static T* out(void* pointer) { return static_cast<T*>(pointer); }

  T* y(int64_t t, int64_t b, int64_t g) const {
    return out(call_.y) + ((t * shape_.B + b) * shape_.G + g) * shape_.H;
  }
  int64_t state(int64_t g, int64_t b) const { return (g * shape_.B + b) * shape_.H; }

  Range units_of(const Tile& tile) const {
    const int64_t end = tile.panels.end * kLanes;
    return {tile.panels.begin * kLanes, end < shape_.H ? end : shape_.H};
  }

  const LstmForward& call_;
  const LstmShape& shape_;
  const int64_t panels_, panel_size_;
  Progress* progress_;
  Row* rows_;
  T* packed_;
  size_t workspace_bytes_;
};

}  // namespace

size_t forward_workspace(const LstmShape& shape, int num_threads) {
  LstmForward call{};
  call.shape = shape;
  return shape.dtype == DType::float32 ? Forward<float>(call, num_threads).workspace_bytes()
                                       : Forward<double>(call, num_threads).workspace_bytes();
}

void forward(const LstmForward& call, int num_threads) {
  if (call.shape.dtype == DType::float32) {
    Forward<float>(call, num_threads).run(num_threads);
  } else {
    Forward<double>(call, num_threads).run(num_threads);
  }
}

}  // namespace fastlstm::cpu::FASTLSTM_ISA

// The backward recurrence of LSTMs with layer norm.
//
// A step has three phases: the gradients of h, from the product of the later step's dz with W_hh,
// and of the norm of c~; the gradients of c~ and of the gates; and dz, through the norm of z. The
// moments of z and of c~ do not depend on later steps: the last phase computes those of the next
// step. As in backward.cpp, steps are processed in blocks, and gradients.h multiplies dz of a block
// with h' while it is in cache.
#pragma once

#include "gradients.h"
#include "normalized_rows.h"
#include "recurrent_weight.h"

namespace fastlstm::cpu {
namespace {

template <class S>
class NormalizedBackward : NormalizedArrays<S> {
  using Base = NormalizedArrays<S>;
  using Base::in, Base::of_group, Base::prepare_order, Base::for_each_panel, Base::units,
      Base::measure, Base::states, Base::shape_, Base::order_;
  using V = Simd<Sum<S>>;
  using Value = typename V::Value;
  using Row = NormalizedRow<S>;
  static constexpr int kUnits = kLanes<S>;

  // What a phase leaves for the next one: a vector of each for every row and panel.
  struct Left {
    Value c, d, d_o;  // c~; the gradient of normalised c~, or without that norm of c~; and of o
  };
  // The two sums of a row, before their lanes are added.
  struct RowVectors {
    Value first, second;
  };

 public:
  NormalizedBackward(const LayerNormBackward& call, int num_threads)
      : Base(call.shape),
        call_(call),
        recurrent_(call),
        gates_(4 * shape_.H),
        row_block_words_(kPieces<S> > 1 ? shape_.B * block_words<S>(gates_) : 0),
        block_(lesser(greater(kChunkRows<S> / greater(shape_.B, 1), 1), shape_.T)),
        most_threads_(num_threads),
        threads_(backward_threads(shape_, num_threads)),
        workspace_(call.workspace),
        weight_hh_(shape_, call.weight_hh, gates_, shape_.H, workspace_),
        weights_fit_l2_(plan_for(threads_).weights_fit_l2),
        progress_(workspace_.take<Progress>(threads_)),
        zeros_(workspace_.take<S>(gates_)),
        products_(workspace_.take<Sum<S>>(threads_ * shape_.B * kStripWidth<S>)),
        left_(workspace_.take<Left>(states() * ceil_div(shape_.H, kUnits))),
        vectors_(workspace_.take<RowVectors>(threads_ * states())),
        dweights_(workspace_.take<Sum<S>>(threads_ * dweights_size())),
        row_blocks_(workspace_.take<Word<S>>(threads_ * row_block_words_)),
        z_sums_(shape_, threads_, workspace_),
        c_sums_(shape_, threads_, workspace_),
        dc_sums_(shape_, threads_, workspace_),
        dz_sums_(shape_, threads_, workspace_),
        recomputation_(recurrent_, num_threads, block_, workspace_),
        buffers_(recurrent_, block_, workspace_),
        rows_(call, buffers_, zeros_, threads_, workspace_),
        gradients_(recurrent_, recomputation_, buffers_, zeros_, threads_, workspace_) {
    int64_t* order = workspace_.take<int64_t>(shape_.B);
    if (shape_.by_length && plan_for(threads_).cuts_rows() && threads_ > 1) {
      order_ = order;
      rows_.read_in(order);
    }
  }

  size_t workspace_bytes() const { return workspace_.bytes(); }

  void run() const {
    std::memset(static_cast<void*>(zeros_), 0, gates_ * sizeof(S));
    run_team(progress_, threads_, most_threads_, [this](Team team) {
      const TileScope tiles;
      const Plan plan = plan_for(team.size());
      const Phase phase(shape_, team, plan);
      prepare(team, plan);
      gradients_.prepare(team);
      team.barrier();
      plan.for_each_tile(shape_, team.thread(), [&](const Tile& tile) {
        rows_.start(tile);
        begin(tile, 0, phase);
      });
      team.barrier();
      for (int64_t first = 0; first < shape_.T; first += block_) {
        const Range block = {first, lesser(first + block_, shape_.T)};
        run_phases(
            plan, shape_, team, block,
            [&](const Tile& tile, int64_t s) { of_hidden(tile, s, phase); },
            [&](const Tile& tile, int64_t) { of_cells(tile, phase); },
            [&](const Tile& tile, int64_t s) {
              of_products(tile, phase);
              begin(tile, s + 1, phase);
            });
        if (!plan.is_one_part()) team.barrier();
        if (!call_.dweight_hh) continue;
        for (int64_t group = 0; group < shape_.G; ++group) gradients_.add(team, group, block);
      }
      plan.for_each_tile(shape_, team.thread(), [&](const Tile& tile) {
        of_hidden(tile, shape_.T, phase);
        rows_.store_dcx(tile);
      });
      team.barrier();
      sum_dweights(team, call_.dweight_ch, 0, 3);
      sum_dweights(team, call_.dnorm_hh, 3, 4);
      sum_dweights(team, call_.dnorm_c, 7, 2);
    });
  }

 private:
  int64_t dweights_size() const { return shape_.G * 9 * shape_.H; }
  Plan plan_for(int threads) const {
    return Plan(shape_, threads, ceil_div(shape_.H, kUnits), weight_hh_.bytes(),
                gates_ * int64_t{sizeof(S)});
  }
  RowVectors* vectors_of_rows(const Tile& tile, int thread) const {
    return vectors_ + thread * states() + tile.group * shape_.B;
  }
  Left* left_at(const Tile& tile, int64_t panel, const Phase& phase) const {
    return left_ + phase.pairs_before + tile.offset + (panel - tile.panels.begin) * tile.num_rows();
  }
  // A thread's sums of the gradients of peepholes (3H), norm_hh (4H) and norm_c (2H) of a group:
  // the arrays (G, ...) lie one after the other.
  Sum<S>* dweight(int thread, int64_t before, int64_t width, int64_t group) const {
    return dweights_ + thread * dweights_size() + (shape_.G * before + group * width) * shape_.H;
  }
  // Packs W_hh, and clears the sums.
  void prepare(const Team& team, const Plan& plan) const {
    prepare_order(team, plan);
    weight_hh_.pack(team, plan);
    Sum<S>* sums = dweight(team.thread(), 0, 0, 0);
    for (int64_t i = 0; i < dweights_size(); ++i) sums[i] = 0;
    for (const RowSums<S>* sums_of : {&z_sums_, &c_sums_, &dc_sums_, &dz_sums_}) {
      sums_of->clear(team.thread());
    }
  }

  // Lists the rows of step s, with c~ and the moments of z and c~.
  void begin(const Tile& tile, int64_t s, const Phase& phase) const {
    rows_.visit(tile, s, phase.thread);
    Row* const rows = rows_.of(tile, phase.thread).data;
    const int64_t count = rows_.of(tile, phase.thread).count;
    const int64_t H = shape_.H;
    const double* clip = call_.norms.cell_clip;
    const Value limit = static_cast<Sum<S>>(clip ? *clip : 0) - Value{};
    for_each_panel(tile, [&](int64_t panel, int64_t unit, auto lanes) {
      Left* left = left_at(tile, panel, phase);
      for (int64_t i = 0; i < count; ++i) {
        if (rows[i].dhx) continue;
        const Value c = rows[i].raw_cell(H, unit, lanes);
        left[i].c = clip ? V::clamp(c, -limit, limit) : c;
      }
    });
    for (int64_t i = 0; i < count; ++i) {
      if (rows[i].dhx) continue;
      const S* z = rows[i].reserve + 5 * H;
      z_sums_.part(phase.thread, tile.group, i) = measure(
          tile, 4,
          [&](int64_t, int64_t unit, auto lanes) { return load_gates<V>(z + unit, H, lanes); });
      if (!call_.norms.norm_c) continue;
      const Left* left = left_at(tile, tile.panels.begin, phase) + i;
      c_sums_.part(phase.thread, tile.group, i) =
          measure(tile, 1, [&](int64_t panel, int64_t, auto) {
            return left[(panel - tile.panels.begin) * tile.num_rows()].c;
          });
    }
  }

  // The gradients of h, of o and of the norm of c~; or dhx.
  void of_hidden(const Tile& tile, int64_t s, const Phase& phase) const {
    Row* const rows = rows_.of(tile, phase.thread).data;
    const int64_t count = rows_.of(tile, phase.thread).count;
    RowVectors* vectors = vectors_of_rows(tile, phase.thread);
    for (int64_t i = 0; i < count; ++i) {
      vectors[i].first = vectors[i].second = Value{};
      if (call_.norms.norm_c && !rows[i].dhx) {
        rows[i].c = c_sums_.moments(phase.parts, tile.group, i);
      }
    }
    const auto dz_after = [&](int64_t i) { return rows[i].dz_after; };
    Word<S>* blocks = kPieces<S> > 1 ? row_blocks_ + phase.thread * row_block_words_ : nullptr;
    for (int64_t k = 0; blocks && s > 0 && k < gates_; k += kChunk<S>) {
      pack_row_blocks<S>(
          count, lesser(kChunk<S>, gates_ - k), [&](int64_t i) { return dz_after(i) + k; },
          blocks + words_of<S>(k) * count);
    }
    Sum<S>* products = products_ + phase.thread * shape_.B * kStripWidth<S>;
    RecurrentWeight<S>::for_each_strip(tile.panels, [&](Range strip) {
      if (s > 0) {
        weight_hh_.multiply(tile, strip, count, dz_after, blocks, weights_fit_l2_, products);
      } else {
        std::memset(products, 0, count * kStripWidth<S> * sizeof(*products));
      }
      for (int64_t panel = strip.begin; panel < strip.end; ++panel) {
        const Sum<S>* product = products + (panel - strip.begin) * kUnits;
        with_lanes<kUnits>(panel * kUnits, shape_.H,
                           [&](auto lanes) { update_hidden(tile, panel, product, lanes, phase); });
      }
    });
    for (int64_t i = 0; i < count; ++i) {
      dc_sums_.part(phase.thread, tile.group, i) = {static_cast<Sum<S>>(units(tile)),
                                                    sum_of_lanes<S>(vectors[i].first),
                                                    sum_of_lanes<S>(vectors[i].second)};
    }
  }

  template <class Lanes>
  void update_hidden(const Tile& tile, int64_t panel, const Sum<S>* product, Lanes lanes,
                     const Phase& phase) const {
    const int64_t H = shape_.H, unit = panel * kUnits;
    Row* const rows = rows_.of(tile, phase.thread).data;
    const int64_t count = rows_.of(tile, phase.thread).count;
    RowVectors* vectors = vectors_of_rows(tile, phase.thread);
    Left* left = left_at(tile, panel, phase);
    const bool has_norm = call_.norms.norm_c != nullptr;
    Value gain = {}, bias = {}, dgain = {}, dbias = {};
    Sum<S>* dnorm = dweight(phase.thread, 7, 2, tile.group) + unit;
    if (has_norm) {
      const S* norm_c = in(call_.norms.norm_c) + tile.group * 2 * H + unit;
      gain = V::load(norm_c, lanes), bias = V::load(norm_c + H, lanes);
      dgain = V::load(dnorm, lanes), dbias = V::load(dnorm + H, lanes);
    }
    for (int64_t i = 0; i < count; ++i, product += kStripWidth<S>) {
      const Row& row = rows[i];
      Value dh = V::load(product, AllLanes{});
      if (row.hidden_mask) dh *= V::load(row.hidden_mask + unit, lanes);
      if (row.dh) dh += V::load(row.dh + unit, lanes);
      if (row.dhx) {
        V::store(row.dhx + unit, dh, lanes);
        continue;
      }
      if (row.dy) dh += V::load(row.dy + unit, lanes);
      if (row.dhy) dh += V::load(row.dhy + unit, lanes);
      if (row.keep_h) {
        const Value kept = V::load(row.keep_h + unit, lanes) * dh;
        V::store(row.dh + unit, kept, lanes);
        dh -= kept;
      }
      const Value o = V::load(row.reserve + 3 * H + unit, lanes);
      const Value normal = has_norm ? row.c.normalise(left[i].c) : left[i].c;
      const Value squashed = V::tanh(has_norm ? gain * normal + bias : normal);
      Value d = dh * o * (1 - squashed * squashed);
      left[i].d_o = dh * squashed * o * (1 - o);
      if (has_norm) {
        dgain += d * normal;
        dbias += d;
        d *= gain;
        vectors[i].first += d;
        vectors[i].second += d * normal;
      }
      left[i].d = d;
    }
    if (has_norm) {
      V::store(dnorm, dgain, lanes);
      V::store(dnorm + H, dbias, lanes);
    }
  }

  // The gradients of c and of the gates; and dz, but for the part of the moments.
  void of_cells(const Tile& tile, const Phase& phase) const {
    Row* const rows = rows_.of(tile, phase.thread).data;
    const int64_t count = rows_.of(tile, phase.thread).count;
    RowVectors* vectors = vectors_of_rows(tile, phase.thread);
    for (int64_t i = 0; i < count; ++i) {
      vectors[i].first = vectors[i].second = Value{};
      if (rows[i].dhx) continue;
      rows[i].z = z_sums_.moments(phase.parts, tile.group, i);
      if (call_.norms.norm_c) rows[i].means = dc_sums_.means(phase.parts, tile.group, i);
    }
    for_each_panel(tile, [&](int64_t panel, int64_t, auto lanes) {
      if (call_.weight_ch.data) {
        update_cells<true>(tile, panel, lanes, phase);
      } else {
        update_cells<false>(tile, panel, lanes, phase);
      }
    });
    for (int64_t i = 0; i < count; ++i) {
      dz_sums_.part(phase.thread, tile.group, i) = {static_cast<Sum<S>>(4 * units(tile)),
                                                    sum_of_lanes<S>(vectors[i].first),
                                                    sum_of_lanes<S>(vectors[i].second)};
    }
  }

  template <bool kPeepholes, class Lanes>
  void update_cells(const Tile& tile, int64_t panel, Lanes lanes, const Phase& phase) const {
    const int64_t H = shape_.H, unit = panel * kUnits;
    Row* const rows = rows_.of(tile, phase.thread).data;
    const int64_t count = rows_.of(tile, phase.thread).count;
    RowVectors* vectors = vectors_of_rows(tile, phase.thread);
    const Left* left = left_at(tile, panel, phase);
    const double* clip = call_.norms.cell_clip;
    const Value limit = static_cast<Sum<S>>(clip ? *clip : 0) - Value{};
    const Gates<Value> gain =
        load_gates<V>(in(call_.norms.norm_hh) + tile.group * gates_ + unit, H, lanes);
    Sum<S>* dnorm = dweight(phase.thread, 3, 4, tile.group) + unit;
    Gates<Value> dgain = load_gates<V>(dnorm, H, lanes);
    Peepholes<Value> weight, dpeephole;
    Sum<S>* dw = dweight(phase.thread, 0, 3, tile.group) + unit;
    if constexpr (kPeepholes) {
      weight = load_peepholes<V>(of_group(call_.weight_ch, tile.group) + unit, H, lanes);
      dpeephole = load_peepholes<V>(dw, H, lanes);
    }
    for (int64_t i = 0; i < count; ++i) {
      const Row& row = rows[i];
      if (row.dhx) continue;
      const auto [gate_i, f, g, o] = load_gates<V>(row.reserve + unit, H, lanes);
      const Value c_prev = V::load(row.c_prev + unit, lanes), c = left[i].c;
      Value dc = V::load(row.dc + unit, lanes), kept = {};
      if (row.dcells) dc += V::load(row.dcells + unit, lanes);
      if (row.keep_c) {
        kept = V::load(row.keep_c + unit, lanes) * dc;
        dc -= kept;
      }
      if (call_.norms.norm_c) {
        const Value normal = row.c.normalise(c);
        dc += row.c.scale * (left[i].d - row.means.first - normal * row.means.second);
      } else {
        dc += left[i].d;
      }
      Gates<Value> d;
      d.o = left[i].d_o;
      if constexpr (kPeepholes) {
        dc += weight.o * d.o;
        dpeephole.o += d.o * c;
      }
      if (clip) {
        const Value raw = row.raw_cell(H, unit, lanes);
        dc = (raw >= -limit) & (raw <= limit) ? dc : Value{};
      }
      d.i = dc * g * gate_i * (1 - gate_i);
      d.f = dc * c_prev * f * (1 - f);
      d.g = dc * gate_i * (1 - g * g);
      dc = dc * f + kept;
      if constexpr (kPeepholes) {
        dc += weight.i * d.i + weight.f * d.f;
        dpeephole.i += d.i * c_prev;
        dpeephole.f += d.f * c_prev;
      }
      V::store(row.dc + unit, dc, lanes);
      if (row.digates) store_gates<V>(row.digates + unit, H, d, lanes);
      const Gates<Value> z = row.z.normalise(load_gates<V>(row.reserve + 5 * H + unit, H, lanes));
      dgain.i += d.i * z.i, dgain.f += d.f * z.f, dgain.g += d.g * z.g, dgain.o += d.o * z.o;
      d.i *= gain.i, d.f *= gain.f, d.g *= gain.g, d.o *= gain.o;
      vectors[i].first += sum_of(d);
      vectors[i].second += (d.i * z.i + d.f * z.f) + (d.g * z.g + d.o * z.o);
      store_gates<V>(row.dz + unit, H, d, lanes);
    }
    store_gates<V>(dnorm, H, dgain, lanes);
    if constexpr (kPeepholes) {
      V::store(dw, dpeephole.i, lanes);
      V::store(dw + H, dpeephole.f, lanes);
      V::store(dw + 2 * H, dpeephole.o, lanes);
    }
  }

  // dz, through the moments of z.
  void of_products(const Tile& tile, const Phase& phase) const {
    Row* const rows = rows_.of(tile, phase.thread).data;
    const int64_t count = rows_.of(tile, phase.thread).count;
    for (int64_t i = 0; i < count; ++i) {
      const Row& row = rows[i];
      if (row.dhx) continue;
      const RowPart<Sum<S>> means = dz_sums_.means(phase.parts, tile.group, i);
      for_each_panel(tile, [&](int64_t, int64_t unit, auto lanes) {
        for (int gate = 0; gate < 4; ++gate) {
          const int64_t at = gate * shape_.H + unit;
          const Value z = row.z.normalise(V::load(row.reserve + 5 * shape_.H + at, lanes));
          const Value d = V::load(row.dz + at, lanes) - means.first - z * means.second;
          V::store(row.dz + at, row.z.scale * d, lanes);
        }
      });
    }
  }

  // Adds the sums of the threads in a fixed order, so that every run gives the same bits.
  void sum_dweights(const Team& team, void* to, int64_t before, int64_t width) const {
    if (!to) return;
    const Range mine = share(shape_.G * width * shape_.H, team.thread(), team.size());
    for (int64_t i = mine.begin; i < mine.end; ++i) {
      Sum<S> sum = 0;
      for (int thread = 0; thread < team.size(); ++thread) {
        sum += dweight(thread, before, 0, 0)[i];
      }
      static_cast<Sum<S>*>(to)[i] = sum;
    }
  }

  const LayerNormBackward& call_;
  const RecurrentCall recurrent_;
  const int64_t gates_, row_block_words_;  // 4H, and words of packed dz, all rows
  const int64_t block_;                    // steps
  const int most_threads_, threads_;       // that the caller allows, and that run
  Workspace workspace_;                    // its pieces are taken in the order of the members below
  const RecurrentWeight<S> weight_hh_;
  const bool weights_fit_l2_;
  Progress* const progress_;
  S* const zeros_;  // (4H)
  Sum<S>* const products_;
  Left* const left_;
  RowVectors* const vectors_;
  Sum<S>* const dweights_;
  Word<S>* const row_blocks_;
  const RowSums<S> z_sums_, c_sums_, dc_sums_, dz_sums_;
  const Recomputation<S> recomputation_;
  const StepBuffers<S> buffers_;
  NormalizedRows<S> rows_;
  const Gradients<S> gradients_;
};

}  // namespace
}  // namespace fastlstm::cpu

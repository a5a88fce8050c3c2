// The LSTM as plain loops over doubles. It shares no code with csrc.
//
// All arrays are contiguous, in the layouts of csrc/lstm.h without strides.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace reference {

using Array = std::vector<double>;

struct Problem {
  int64_t T, B, G, H, I, P;        // P: numbers of h, which is projected if weight_hr is there
  std::vector<uint8_t> reverse{};  // (G)
  std::vector<int64_t> lengths{};  // (B)
  std::vector<uint8_t> reset{};    // (T, B)
  Array input{};                   // x (T, B, G, I), or, if I is 0, igates (T, B, G, 4H)
  Array weight_ih{}, bias_ih{}, bias_hh{}, weight_hh{}, weight_ch{},
      weight_hr{};                     // (G, ...), empty where there is none
  Array hx{}, cx{};                    // (G, B, P), (G, B, H)
  Array dy{}, dhy{}, dcy{}, dcells{};  // as y, hy, cy, cells
  // Options of the cells, without a projection: (G, B, H), (T, B, G, H) twice, empty where there is
  // none, and the largest magnitude of c, or 0.
  Array hidden_mask{}, keep_h{}, keep_c{};
  double cell_clip = 0;
};

struct Results {
  Array y, hy, cy, cells, reserve;
  Array dinput, dweight_ih, dbias, dweight_hh, dweight_ch, dweight_hr, dhx, dcx;
};

inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// One row of the batch in one group, forward and back through time.
class Row {
 public:
  Row(const Problem& problem, Results& results, int64_t g, int64_t b)
      : p_(problem), r_(results), g_(g), b_(b), H_(problem.H), I_(problem.I), P_(problem.P) {}

  void run() {
    const int64_t length = p_.lengths[b_], hidden = (g_ * p_.B + b_) * P_, state = hidden / P_ * H_;
    Array h(&p_.hx[hidden], &p_.hx[hidden] + P_), c(&p_.cx[state], &p_.cx[state] + H_);
    std::vector<Array> h_prev, c_prev, c_next;  // [s]: before and after step s
    for (int64_t s = 0; s < length; ++s) {
      if (starts_afresh(time_of(s))) h.assign(P_, 0), c.assign(H_, 0);
      h_prev.push_back(h), c_prev.push_back(c);
      forward(time_of(s), h, c);
      c_next.push_back(c);
    }
    std::copy(h.begin(), h.end(), &r_.hy[hidden]);
    std::copy(c.begin(), c.end(), &r_.cy[state]);
    Array dh(&p_.dhy[hidden], &p_.dhy[hidden] + P_), dc(&p_.dcy[state], &p_.dcy[state] + H_);
    for (int64_t s = length - 1; s >= 0; --s) {
      backward(time_of(s), h_prev[s], c_prev[s], c_next[s], dh, dc);
      if (starts_afresh(time_of(s))) dh.assign(P_, 0), dc.assign(H_, 0);
    }
    std::copy(dh.begin(), dh.end(), &r_.dhx[hidden]);
    std::copy(dc.begin(), dc.end(), &r_.dcx[state]);
  }

 private:
  int64_t time_of(int64_t s) const { return p_.reverse[g_] ? p_.lengths[b_] - 1 - s : s; }
  int64_t at(int64_t t) const { return (t * p_.B + b_) * p_.G + g_; }
  bool starts_afresh(int64_t t) const {
    const int64_t border = p_.reverse[g_] ? t + 1 : t;
    return border < p_.lengths[b_] && p_.reset[border * p_.B + b_];
  }

  // The sum of the input and the recurrent projection at one row of the weights, 0 to 4H - 1.
  double preactivation(int64_t t, int64_t row, const Array& h) const {
    const int64_t gate = g_ * 4 * H_ + row;
    double sum = I_ ? 0 : p_.input[at(t) * 4 * H_ + row];
    for (int64_t k = 0; k < I_; ++k) sum += p_.input[at(t) * I_ + k] * p_.weight_ih[gate * I_ + k];
    for (int64_t k = 0; k < P_; ++k) sum += mask(k) * h[k] * p_.weight_hh[gate * P_ + k];
    if (!p_.bias_ih.empty()) sum += p_.bias_ih[gate];
    if (!p_.bias_hh.empty()) sum += p_.bias_hh[gate];
    return sum;
  }

  // The peephole of gate 0 (i), 1 (f) or 2 (o).
  double weight_ch(int64_t gate, int64_t u) const {
    return p_.weight_ch.empty() ? 0 : p_.weight_ch[(g_ * 3 + gate) * H_ + u];
  }

  double mask(int64_t u) const {
    return p_.hidden_mask.empty() ? 1 : p_.hidden_mask[(g_ * p_.B + b_) * P_ + u];
  }
  double keep_h(int64_t t, int64_t u) const {
    return p_.keep_h.empty() ? 0 : p_.keep_h[at(t) * P_ + u];
  }
  double keep_c(int64_t t, int64_t u) const {
    return p_.keep_c.empty() ? 0 : p_.keep_c[at(t) * H_ + u];
  }
  bool is_clipped(double c) const { return p_.cell_clip > 0 && std::abs(c) > p_.cell_clip; }
  double clip(double c) const { return is_clipped(c) ? std::copysign(p_.cell_clip, c) : c; }

  double weight_hr(int64_t p, int64_t u) const { return p_.weight_hr[(g_ * P_ + p) * H_ + u]; }

  // Updates h and c from their values before step t to those after it.
  void forward(int64_t t, Array& h, Array& c) {
    Array hidden(H_), cy(H_);
    for (int64_t u = 0; u < H_; ++u) {
      const double i = sigmoid(preactivation(t, u, h) + weight_ch(0, u) * c[u]);
      const double f = sigmoid(preactivation(t, H_ + u, h) + weight_ch(1, u) * c[u]);
      const double g = std::tanh(preactivation(t, 2 * H_ + u, h));
      cy[u] = clip(f * c[u] + i * g);
      const double o = sigmoid(preactivation(t, 3 * H_ + u, h) + weight_ch(2, u) * cy[u]);
      hidden[u] = o * std::tanh(cy[u]);
      cy[u] = keep_c(t, u) * c[u] + (1 - keep_c(t, u)) * cy[u];
      r_.cells[at(t) * H_ + u] = cy[u];
      const double kept[5] = {i, f, g, o, cy[u]};
      for (int64_t k = 0; k < 5; ++k) r_.reserve[(at(t) * 5 + k) * H_ + u] = kept[k];
    }
    c = cy;
    const Array h_prev = h;
    h = hidden;
    for (int64_t p = 0; p < P_ && !p_.keep_h.empty(); ++p) {
      h[p] = keep_h(t, p) * h_prev[p] + (1 - keep_h(t, p)) * hidden[p];
    }
    if (!p_.weight_hr.empty()) {
      h.assign(P_, 0);
      for (int64_t p = 0; p < P_; ++p) {
        for (int64_t u = 0; u < H_; ++u) h[p] += weight_hr(p, u) * hidden[u];
      }
    }
    std::copy(h.begin(), h.end(), &r_.y[at(t) * P_]);
  }

  // The gradient of the cell's output before the projection, from the gradient of h.
  Array hidden_gradient(int64_t t, const Array& dh, const Array& c) {
    if (p_.weight_hr.empty()) return dh;
    Array dhidden(H_);
    for (int64_t u = 0; u < H_; ++u) {
      const double hidden = r_.reserve[(at(t) * 5 + 3) * H_ + u] * std::tanh(c[u]);
      for (int64_t p = 0; p < P_; ++p) {
        dhidden[u] += dh[p] * weight_hr(p, u);
        r_.dweight_hr[(g_ * P_ + p) * H_ + u] += dh[p] * hidden;
      }
    }
    return dhidden;
  }

  // Updates dh and dc from the gradients of h and c after step t to those before it.
  void backward(int64_t t, const Array& h_prev, const Array& c_prev, const Array& c, Array& dh,
                Array& dc) {
    Array digates(4 * H_);
    Array dh_kept(P_);
    for (int64_t p = 0; p < P_; ++p) {
      dh[p] += p_.dy[at(t) * P_ + p];
      dh_kept[p] = keep_h(t, p) * dh[p];
      dh[p] -= dh_kept[p];
    }
    const Array dhidden = hidden_gradient(t, dh, c);
    for (int64_t u = 0; u < H_; ++u) {
      dc[u] += p_.dcells[at(t) * H_ + u];
      const double* kept = &r_.reserve[at(t) * 5 * H_ + u];
      const double i = kept[0], f = kept[H_], g = kept[2 * H_], o = kept[3 * H_];
      const double sum = f * c_prev[u] + i * g, dc_kept = keep_c(t, u) * dc[u];
      const double new_c = p_.keep_c.empty() ? c[u] : clip(sum);
      const double dy = dhidden[u], tanh_c = std::tanh(new_c);
      const double d_o = dy * tanh_c * o * (1 - o);
      double dcy = dc[u] - dc_kept + dy * o * (1 - tanh_c * tanh_c) + weight_ch(2, u) * d_o;
      if (is_clipped(sum)) dcy = 0;
      const double d_i = dcy * g * i * (1 - i), d_f = dcy * c_prev[u] * f * (1 - f);
      digates[u] = d_i;
      digates[H_ + u] = d_f;
      digates[2 * H_ + u] = dcy * i * (1 - g * g);
      digates[3 * H_ + u] = d_o;
      dc[u] = dcy * f + weight_ch(0, u) * d_i + weight_ch(1, u) * d_f + dc_kept;
      if (!p_.weight_ch.empty()) {
        double* dweight_ch = &r_.dweight_ch[g_ * 3 * H_ + u];
        dweight_ch[0] += d_i * c_prev[u];
        dweight_ch[H_] += d_f * c_prev[u];
        dweight_ch[2 * H_] += d_o * new_c;
      }
    }
    dh = dh_kept;
    for (int64_t row = 0; row < 4 * H_; ++row) {
      const int64_t gate = g_ * 4 * H_ + row;
      for (int64_t k = 0; k < P_; ++k) {
        dh[k] += mask(k) * digates[row] * p_.weight_hh[gate * P_ + k];
        r_.dweight_hh[gate * P_ + k] += digates[row] * mask(k) * h_prev[k];
      }
      for (int64_t k = 0; k < I_; ++k) {
        r_.dinput[at(t) * I_ + k] += digates[row] * p_.weight_ih[gate * I_ + k];
        r_.dweight_ih[gate * I_ + k] += digates[row] * p_.input[at(t) * I_ + k];
      }
      if (I_) {
        r_.dbias[gate] += digates[row];
      } else {
        r_.dinput[at(t) * 4 * H_ + row] = digates[row];
      }
    }
  }

  const Problem& p_;
  Results& r_;
  const int64_t g_, b_, H_, I_, P_;
};

inline Results run(const Problem& p) {
  const int64_t rows = p.T * p.B * p.G, states = p.G * p.B, gates = p.G * 4 * p.H;
  Results r;
  r.y.assign(rows * p.P, 0);
  r.cells.assign(rows * p.H, 0);
  r.reserve.assign(rows * 5 * p.H, 0);
  r.dinput.assign(rows * (p.I ? p.I : 4 * p.H), 0);
  r.dweight_ih.assign(gates * p.I, 0);
  r.dbias.assign(p.I ? gates : 0, 0);
  r.dweight_hh.assign(gates * p.P, 0);
  r.dweight_ch.assign(p.weight_ch.size(), 0);
  r.dweight_hr.assign(p.weight_hr.size(), 0);
  for (Array* state : {&r.hy, &r.dhx}) state->assign(states * p.P, 0);
  for (Array* state : {&r.cy, &r.dcx}) state->assign(states * p.H, 0);
  for (int64_t g = 0; g < p.G; ++g) {
    for (int64_t b = 0; b < p.B; ++b) Row(p, r, g, b).run();
  }
  return r;
}

}  // namespace reference

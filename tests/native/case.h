// One call of the kernels: its sizes and options, its numbers, and the comparison of its results.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "../../csrc/cpu/kernels.h"
#include "buffer.h"
#include "reference.h"

namespace fastlstm {

// How the rows of a (T, B, G, n) array lie in memory.
enum class Layout { contiguous, batch_first, gaps, over_time, over_batch, shared, one_row };
constexpr const char* kLayouts[] = {"contiguous", "batch_first", "gaps",   "over_time",
                                    "over_batch", "shared",      "one_row"};

// Where the packed W_ih and W_hh come from: each call packs its own (none), the call writes them to
// memory of the caller (kept), an earlier call did (reused), or a call without steps did (alone).
enum class Packing { none, kept, reused, alone };
constexpr const char* kPackings[] = {"none", "kept", "reused", "alone"};

struct Case {
  DType dtype = DType::float32;
  int64_t T = 3, B = 4, G = 2, H = 17, I = 9;
  int64_t P = 0;    // size of the projected h, or 0
  int reverse = 2;  // bit g: group g
  int threads = 1;
  bool repeats = false;  // whether a second run has to give the same bits
  bool lengths = false, packed_rows = false, reset = false, cells = false;
  bool peepholes = true, bias_ih = true, bias_hh = true;
  bool backwards_weights = false;  // group 0 lies last in memory, with gaps between the groups
  Packing packing = Packing::none;
  int64_t checkpoint_every = 0;  // if not 0, the bits are compared with those without checkpoints
  bool keeps_y = true;           // whether forward with checkpoints writes y
  Layout input = Layout::contiguous, dy = Layout::contiguous;
  bool mask = false, keep_h = false, keep_c = false;  // options of the cells
  double cell_clip = 0;
  Layout keep = Layout::contiguous;
  std::string null = "";  // names of the pointers that are null, each between spaces
  int64_t shift = 0;      // numbers before the first, in every buffer that need not be aligned

  bool has(const std::string& name) const {
    return null.find(" " + name + " ") == std::string::npos;
  }

  int64_t hidden_size() const { return P ? P : H; }
  bool has_options() const { return mask || keep_h || keep_c || cell_clip > 0; }
  // (B) lengths from 0 to T: unordered, or longest first if rows are packed.
  std::vector<int64_t> row_lengths() const {
    std::vector<int64_t> lengths;
    for (int64_t b = 0; b < B; ++b) {
      lengths.push_back(this->lengths || packed_rows ? (b * 5 + 2) % (T + 1) : T);
    }
    if (packed_rows) std::sort(lengths.rbegin(), lengths.rend());
    return lengths;
  }
  // (T + 1) the first row of each step; the last entry is the number of rows.
  std::vector<int64_t> first_rows() const {
    std::vector<int64_t> first = {0};
    const std::vector<int64_t> lengths = row_lengths();
    for (int64_t t = 0; t < T; ++t) {
      const auto goes_on = [&](int64_t length) { return length > t; };
      const int64_t rows = std::count_if(lengths.begin(), lengths.end(), goes_on);
      first.push_back(first.back() + (packed_rows ? rows : B));
    }
    return first;
  }

  std::string describe() const {
    const char* const dtypes[] = {"float32", "float64", "bfloat16"};
    std::string text = dtypes[static_cast<int>(dtype)];
    const auto add = [&](const char* name, int64_t value) {
      text += std::string(" ") + name + "=" + std::to_string(value);
    };
    add("T", T), add("B", B), add("G", G), add("H", H), add("I", I), add("P", P);
    add("reverse", reverse), add("threads", threads), add("lengths", lengths);
    add("packed_rows", packed_rows), add("reset", reset), add("cells", cells);
    add("peepholes", peepholes), add("bias_ih", bias_ih), add("bias_hh", bias_hh);
    add("backwards_weights", backwards_weights), add("shift", shift);
    add("checkpoint_every", checkpoint_every), add("keeps_y", keeps_y);
    add("mask", mask), add("keep_h", keep_h), add("keep_c", keep_c);
    add("clips", cell_clip > 0), add("keep", static_cast<int64_t>(keep));
    text += std::string(" packing=") + kPackings[static_cast<int>(packing)];
    text += std::string(" input=") + kLayouts[static_cast<int>(input)];
    text += std::string(" dy=") + kLayouts[static_cast<int>(dy)];
    return null.empty() ? text : text + " null=" + null;
  }
};

// A (T, B, G, n) array in a buffer that ends with its last row; or (N, G, n), of packed rows.
struct Rows {
  Buffer buffer;
  int64_t stride[3], T, B, G, n;
  bool packed;
  std::vector<int64_t> lengths, first;

  Rows(const Case& c, int64_t n, Layout layout)
      : T(c.T),
        B(c.B),
        G(c.G),
        n(n),
        packed(c.packed_rows),
        lengths(c.row_lengths()),
        first(c.first_rows()) {
    const int64_t width = layout == Layout::gaps ? n + 3 : n;
    const int64_t strides[][3] = {
        {B * G * n, G * n, n},              // contiguous
        {G * n, T * G * n, n},              // batch_first
        {B * G * width, G * width, width},  // gaps
        {0, G * n, n},                      // over_time
        {G * n, 0, n},                      // over_batch
        {B * n, n, 0},                      // shared
        {0, 0, 0},                          // one_row
    };
    std::copy_n(strides[static_cast<int>(layout)], 3, stride);
    const int64_t last = packed ? first[T] * stride[1] : at(T - 1, B - 1, G - 1) + n;
    buffer = Buffer(c.dtype, last, c.shift);
  }

  int64_t at(int64_t t, int64_t b, int64_t g) const {
    const int64_t row = packed ? (first[t] + b) * stride[1] : t * stride[0] + b * stride[1];
    return row + g * stride[2];
  }

  // Calls visit(offset in the buffer, index in a contiguous array (T, B, G, n), t, b) for each
  // number that the buffer has: packed rows end at their length.
  template <class Visit>
  void for_each(const Visit& visit) const {
    for (int64_t t = 0; t < T; ++t) {
      for (int64_t b = 0; b < B; ++b) {
        if (packed && t >= lengths[b]) continue;
        for (int64_t i = 0; i < G * n; ++i) {
          visit(at(t, b, i / n) + i % n, (t * B + b) * G * n + i, t, b);
        }
      }
    }
  }
};

// A parameter of all groups.
struct Parameter {
  Buffer buffer;
  int64_t first, stride, G, size;

  Parameter(const Case& c, int64_t size) : G(c.G), size(size) {
    const int64_t step = c.backwards_weights ? size + 5 : size;
    buffer = Buffer(c.dtype, (G - 1) * step + size, c.shift);
    first = c.backwards_weights ? (G - 1) * step : 0;
    stride = c.backwards_weights ? -step : step;
  }

  LstmWeight weight(DType dtype) const {
    return {static_cast<const char*>(buffer.data()) + first * size_of(dtype), stride};
  }
};

// The inputs of a call, twice: in the kernels' memory and layout, and in the reference's.
class Inputs {
 public:
  explicit Inputs(const Case& c)
      : input(c, c.I ? c.I : 4 * c.H, c.input),
        dy(c, c.hidden_size(), c.dy),
        dcells(c, c.H, Layout::contiguous),
        keep_h(c, c.hidden_size(), c.keep),
        keep_c(c, c.H, c.keep),
        weight_ih(c, 4 * c.H * c.I),
        bias_ih(c, 4 * c.H),
        bias_hh(c, 4 * c.H),
        weight_hh(c, 4 * c.H * c.hidden_size()),
        weight_ch(c, 3 * c.H),
        weight_hr(c, c.P * c.H),
        hx(c.dtype, c.G * c.B * c.hidden_size(), c.shift),
        cx(c.dtype, c.G * c.B * c.H, c.shift),
        dhy(c.dtype, c.G * c.B * c.hidden_size(), c.shift),
        dcy(c.dtype, c.G * c.B * c.H, c.shift),
        hidden_mask(c.dtype, c.G * c.B * c.hidden_size(), c.shift),
        masked_hx(c.dtype, c.G * c.B * c.hidden_size(), c.shift),
        random_(static_cast<uint32_t>(c.T + 41 * c.B + 577 * c.H + 7919 * c.I)) {
    problem = {c.T, c.B, c.G, c.H, c.I, c.hidden_size()};
    reverse = std::make_unique<bool[]>(c.G);
    for (int64_t g = 0; g < c.G; ++g) {
      reverse[g] = c.reverse >> g & 1;
      problem.reverse.push_back(reverse[g]);
    }
    problem.lengths = c.row_lengths();
    for (int64_t i = 0; i < c.T * c.B; ++i) problem.reset.push_back(c.reset && i * 5 % 7 < 2);
    first_row = c.first_rows();
    by_length.resize(c.B);
    std::iota(by_length.begin(), by_length.end(), 0);
    std::stable_sort(by_length.begin(), by_length.end(),
                     [&](int64_t a, int64_t b) { return problem.lengths[a] > problem.lengths[b]; });
    fill(input, 1, problem.input);
    fill(dy, c.has("dy"), problem.dy);
    fill(dcells, c.cells && c.has("dcells"), problem.dcells);
    // As in nn.LSTM: the sums have a size of about 1, whatever their length.
    const double bound = 1 / std::sqrt(static_cast<double>(c.H));
    if (c.I) fill(weight_ih, 1 / std::sqrt(static_cast<double>(c.I)), problem.weight_ih);
    if (c.I && c.bias_ih) fill(bias_ih, bound, problem.bias_ih);
    if (c.I && c.bias_hh) fill(bias_hh, bound, problem.bias_hh);
    fill(weight_hh, bound, problem.weight_hh);
    if (c.peepholes) fill(weight_ch, 0.5, problem.weight_ch);
    if (c.P) fill(weight_hr, bound, problem.weight_hr);
    fill(hx, 1, problem.hx);
    fill(cx, 1, problem.cx);
    fill(dhy, c.has("dhy"), problem.dhy);
    fill(dcy, c.has("dcy"), problem.dcy);
    if (c.has_options()) fill_options(c);
  }

  reference::Problem problem;
  std::unique_ptr<bool[]> reverse;
  std::vector<int64_t> by_length, first_row;
  Rows input, dy, dcells, keep_h, keep_c;
  Parameter weight_ih, bias_ih, bias_hh, weight_hh, weight_ch, weight_hr;
  Buffer hx, cx, dhy, dcy, hidden_mask, masked_hx;

 private:
  void fill_options(const Case& c) {
    problem.cell_clip = c.cell_clip;
    if (c.keep_h) fill(keep_h, 0.75, problem.keep_h);
    if (c.keep_c) fill(keep_c, 0.75, problem.keep_c);
    if (!c.mask) return;
    fill(hidden_mask, 1, problem.hidden_mask);
    for (int64_t i = 0; i < hx.count(); ++i) masked_hx.set(i, hidden_mask.get(i) * hx.get(i));
  }

  double number(double bound) { return bound * (random_() * 0x1p-31 - 1); }

  // Rows past a length stay NaN, because no kernel may read them; but not if a stride of 0 makes
  // them the same memory as rows that are read.
  void fill(Rows& rows, double bound, reference::Array& array) {
    const auto in_use = [&](int64_t t, int64_t b) {
      return rows.stride[0] == 0 || rows.stride[1] == 0 || t < problem.lengths[b];
    };
    rows.for_each([&](int64_t at, int64_t, int64_t t, int64_t b) {
      if (in_use(t, b)) rows.buffer.set(at, number(bound));
    });
    array.assign(rows.T * rows.B * rows.G * rows.n, 0);
    rows.for_each([&](int64_t at, int64_t index, int64_t t, int64_t b) {
      if (in_use(t, b)) array[index] = rows.buffer.get(at);
    });
  }
  void fill(Parameter& parameter, double bound, reference::Array& array) {
    for (int64_t g = 0; g < parameter.G; ++g) {
      for (int64_t i = 0; i < parameter.size; ++i) {
        const int64_t at = parameter.first + g * parameter.stride + i;
        parameter.buffer.set(at, number(bound));
        array.push_back(parameter.buffer.get(at));
      }
    }
  }
  void fill(Buffer& buffer, double bound, reference::Array& array) {
    for (int64_t i = 0; i < buffer.count(); ++i) {
      buffer.set(i, number(bound));
      array.push_back(buffer.get(i));
    }
  }

  std::mt19937 random_;  // the same numbers everywhere, by the standard
};

}  // namespace fastlstm

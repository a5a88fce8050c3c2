// One case on one instruction set: calls the kernels of csrc/cpu and compares every result with the
// loops over doubles in reference.h.
#pragma once

#include <cstdio>
#include <mutex>

#include "case.h"

namespace fastlstm {

class Report {
 public:
  void add_case() {
    const std::lock_guard<std::mutex> lock(mutex_);
    ++cases_;
  }
  void fail(const std::string& where, const std::string& what) {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::printf("%s: %s\n", where.c_str(), what.c_str());
    ++failures_;
  }
  // Records the error of a result, as a part of its tolerance.
  void add_error(double part) {
    const std::lock_guard<std::mutex> lock(mutex_);
    worst_ = std::max(worst_, part);
  }
  // The exit status.
  int summary() const {
    if (failures_) {
      std::printf("%d cases, %d results wrong\n", cases_, failures_);
      return 1;
    }
    std::printf("%d cases, all right; the largest error is %.2f of its limit\n", cases_, worst_);
    return 0;
  }

 private:
  std::mutex mutex_;
  int cases_ = 0, failures_ = 0;
  double worst_ = 0;
};

// One case on one instruction set.
class Run {
 public:
  Run(const Case& c, const Inputs& in, const reference::Results& expected,
      const cpu::Kernels& kernels, Report& report)
      : c_(c),
        in_(in),
        expected_(expected),
        kernels_(kernels),
        report_(report),
        sums_(c.dtype == DType::bfloat16 ? DType::float32 : c.dtype),
        shape_{} {
    shape_.dtype = c.dtype;
    shape_.T = c.T, shape_.B = c.B, shape_.G = c.G, shape_.H = c.H, shape_.I = c.I, shape_.P = c.P;
    shape_.reverse = in.reverse.get();
    if (c.lengths || c.packed_rows) {
      shape_.lengths = in.problem.lengths.data();
      shape_.by_length = in.by_length.data();
    }
    if (c.packed_rows) shape_.first_row = in.first_row.data();
    if (c.reset) shape_.reset = in.problem.reset.data();
    if (c.mask) options_.hidden_mask = in.hidden_mask.data();
    if (c.mask) options_.masked_hx = in.masked_hx.data();
    if (c.keep_h) options_.keep_h = in.keep_h.buffer.data();
    if (c.keep_c) options_.keep_c = in.keep_c.buffer.data();
    std::copy_n(in.keep_h.stride, 3, options_.keep_h_stride);
    std::copy_n(in.keep_c.stride, 3, options_.keep_c_stride);
    options_.cell_clip = c.cell_clip;
  }

  void run() {
    report_.add_case();
    if (c_.packing == Packing::alone) pack();
    if (c_.packing == Packing::kept || c_.packing == Packing::reused) prepacked_ = prepacked();
    Outputs outputs = forward(shape_, c_.packing == Packing::alone);
    compare_outputs(outputs);
    if (c_.packing == Packing::reused) compare_outputs(outputs = forward(shape_, true));
    if (c_.repeats) compare_repeated();
    if (!c_.has("reserve")) return;
    compare_gradients(backward(shape_, outputs));
    if (c_.checkpoint_every) compare_checkpointed();
  }

 private:
  struct Outputs {
    Buffer y, hy, cy, cells, reserve, checkpoints;
  };
  struct Gradients {
    Rows dinput;
    Buffer dweight_ih, dbias, dweight_hh, dweight_ch, dweight_hr, dhx, dcx;
  };

  int64_t rows() const { return in_.first_row[c_.T] * c_.G; }
  int64_t hidden_states() const { return c_.G * c_.B * c_.hidden_size(); }
  int64_t states() const { return c_.G * c_.B * c_.H; }
  Buffer numbers(int64_t count) const { return Buffer(c_.dtype, count, c_.shift); }
  static Buffer bytes(size_t count) { return Buffer(DType::bfloat16, count / 2); }
  Buffer prepacked() const { return bytes(kernels_.forward_prepacked(shape_)); }

  LstmWeight weight(const Parameter& parameter, bool is_there) const {
    return is_there ? parameter.weight(c_.dtype) : LstmWeight{nullptr, 0};
  }

  void pack() {
    prepacked_ = prepacked();
    LstmForward call{};
    call.shape.dtype = c_.dtype;
    call.shape.G = c_.G, call.shape.H = c_.H, call.shape.I = c_.I, call.shape.P = c_.P;
    call.weight_ih = weight(in_.weight_ih, c_.I);
    call.weight_hh = weight(in_.weight_hh, true);
    call.prepacked = prepacked_.data();
    const Buffer workspace = bytes(kernels_.forward_workspace(call.shape, c_.threads));
    call.workspace = workspace.data();
    kernels_.forward(call, c_.threads);
  }

  void set_inputs(LstmCall& call, const LstmShape& shape) const {
    call.shape = shape;
    call.input = in_.input.buffer.data();
    std::copy_n(in_.input.stride, 3, call.input_stride);
    call.weight_ih = weight(in_.weight_ih, c_.I);
    call.bias_ih = weight(in_.bias_ih, c_.I && c_.bias_ih);
    call.bias_hh = weight(in_.bias_hh, c_.I && c_.bias_hh);
    call.weight_hh = weight(in_.weight_hh, true);
    call.weight_ch = weight(in_.weight_ch, c_.peepholes);
    call.weight_hr = weight(in_.weight_hr, c_.P);
    call.hx = in_.hx.data();
    call.cx = in_.cx.data();
    if (c_.has_options()) call.options = &options_;
  }

  // If the shape has checkpoint_every, checkpoints are written in place of the reserve, and y only
  // if the case keeps it.
  Outputs forward(const LstmShape& shape, bool is_prepacked) const {
    Outputs outputs;
    const int64_t every = shape.checkpoint_every;
    if (!every || c_.keeps_y) outputs.y = numbers(rows() * c_.hidden_size());
    outputs.hy = numbers(hidden_states()), outputs.cy = numbers(states());
    if (c_.cells) outputs.cells = numbers(rows() * c_.H);
    if (every) {
      const int64_t count = (c_.T + every - 1) / every * (hidden_states() + states());
      outputs.checkpoints = Buffer(sums_, count, c_.shift);
    } else if (c_.has("reserve")) {
      outputs.reserve = numbers(rows() * 5 * c_.H);
    }
    const Buffer workspace = bytes(kernels_.forward_workspace(shape, c_.threads));
    LstmForward call{};
    set_inputs(call, shape);
    call.y = outputs.y.data();
    call.hy = outputs.hy.data();
    call.cy = outputs.cy.data();
    call.cells = outputs.cells.data();
    call.reserve = outputs.reserve.data();
    call.checkpoints = outputs.checkpoints.data();
    call.prepacked = prepacked_.data();
    call.is_prepacked = is_prepacked;
    call.workspace = workspace.data();
    kernels_.forward(call, c_.threads);
    return outputs;
  }

  void compare_outputs(Outputs& outputs) {
    const int64_t terms = c_.H + c_.I;
    compare_rows("y", outputs.y, expected_.y, c_.hidden_size(), terms);
    if (c_.cells) compare_rows("cells", outputs.cells, expected_.cells, c_.H, terms);
    compare("hy", outputs.hy, expected_.hy, terms);
    compare("cy", outputs.cy, expected_.cy, terms);
    if (c_.has("reserve")) compare_reserve(outputs.reserve, terms);
  }

  // Checkpoints give the same bits as the reserve. Without prepacked weights: few rows are
  // multiplied with those in another order.
  void compare_checkpointed() {
    prepacked_ = Buffer();
    const Outputs all = forward(shape_, false);
    const Gradients expected = backward(shape_, all);
    LstmShape shape = shape_;
    shape.checkpoint_every = c_.checkpoint_every;
    const Outputs few = forward(shape, false);
    const Gradients found = backward(shape, few);
    compare_all_bits(few, all, found, expected, "without checkpoints");
  }

  // Two runs give the same bits.
  void compare_repeated() {
    const Outputs first = forward(shape_, false), second = forward(shape_, false);
    compare_all_bits(second, first, backward(shape_, second), backward(shape_, first), "before");
  }

  void compare_all_bits(const Outputs& found, const Outputs& expected, const Gradients& gradients,
                        const Gradients& expected_gradients, const char* when) {
    const auto compare = [&](const char* name, const Buffer& is, const Buffer& was) {
      if (is.has_the_bits_of(was)) return;
      int64_t i = 0;
      while (i + 1 < is.count() && is.get(i) == was.get(i)) ++i;
      char text[100];
      std::snprintf(text, sizeof(text), "is %.17g, and %.17g %s", is.get(i), was.get(i), when);
      fail(name, i, text);
    };
    const Gradients &g = gradients, &e = expected_gradients;
    if (found.y.data()) compare("y", found.y, expected.y);
    compare("hy", found.hy, expected.hy);
    compare("cy", found.cy, expected.cy);
    compare("cells", found.cells, expected.cells);
    compare("dinput", g.dinput.buffer, e.dinput.buffer);
    compare("dweight_ih", g.dweight_ih, e.dweight_ih);
    compare("dbias", g.dbias, e.dbias);
    compare("dweight_hh", g.dweight_hh, e.dweight_hh);
    compare("dweight_ch", g.dweight_ch, e.dweight_ch);
    compare("dweight_hr", g.dweight_hr, e.dweight_hr);
    compare("dhx", g.dhx, e.dhx);
    compare("dcx", g.dcx, e.dcx);
  }

  // Compares with the rows of `expected` (T, B, G, n) that `found` has: all, unless rows are
  // packed.
  void compare_rows(const char* name, const Buffer& found, const reference::Array& expected,
                    int64_t n, int64_t terms) {
    const Rows rows(c_, n, Layout::contiguous);
    reference::Array there(found.count());
    rows.for_each(
        [&](int64_t at, int64_t index, int64_t, int64_t) { there[at] = expected[index]; });
    compare(name, found, there, terms);
  }

  // Checks that rows past a length were not written, and compares the others.
  void compare_reserve(Buffer& reserve, int64_t terms) {
    const auto is_past = [&](int64_t i) {
      if (c_.packed_rows) return false;
      const int64_t row = i / (5 * c_.H) / c_.G;
      return row / c_.B >= in_.problem.lengths[row % c_.B];
    };
    for (int64_t i = 0; i < reserve.count(); ++i) {
      if (!is_past(i)) continue;
      if (!reserve.is_untouched(i)) return fail("reserve", i, "is written past a length");
      reserve.set(i, 0);
    }
    compare_rows("reserve", reserve, expected_.reserve, 5 * c_.H, terms);
    for (int64_t i = 0; i < reserve.count(); ++i) {
      if (is_past(i)) reserve.poison(i);  // backward must not read it either
    }
  }

  Gradients backward(const LstmShape& shape, const Outputs& kept) const {
    const bool same = c_.I && c_.input <= Layout::gaps, shared = c_.I && c_.input == Layout::shared;
    const int64_t gates = c_.G * 4 * c_.H;
    const auto sums = [&](int64_t count) { return Buffer(sums_, count, c_.shift); };
    Gradients g = {
        Rows(c_, c_.I ? c_.I : 4 * c_.H, same || shared ? c_.input : Layout::contiguous),
        sums(gates * c_.I),
        sums(gates),
        sums(gates * c_.hidden_size()),
        sums(c_.G * 3 * c_.H),
        sums(c_.G * c_.P * c_.H),
        numbers(hidden_states()),
        numbers(states()),
    };
    const Buffer workspace = bytes(kernels_.backward_workspace(shape, c_.threads));
    const auto wanted = [&](const Buffer& buffer, const char* name, bool exists) {
      return exists && c_.has(name) ? buffer.data() : nullptr;
    };
    LstmBackward call{};
    set_inputs(call, shape);
    if (!c_.I && !shape.checkpoint_every) call.input = nullptr;
    call.dy = wanted(in_.dy.buffer, "dy", true);
    std::copy_n(in_.dy.stride, 3, call.dy_stride);
    call.dhy = wanted(in_.dhy, "dhy", true);
    call.dcy = wanted(in_.dcy, "dcy", true);
    call.dcells = wanted(in_.dcells.buffer, "dcells", c_.cells);
    call.reserve = kept.reserve.data();
    call.checkpoints = kept.checkpoints.data();
    call.y = kept.y.data();
    call.dinput = wanted(g.dinput.buffer, "dinput", true);
    std::copy_n(g.dinput.stride, 3, call.dinput_stride);
    call.dweight_ih = wanted(g.dweight_ih, "dweight_ih", c_.I);
    call.dbias = wanted(g.dbias, "dbias", c_.I);
    call.dweight_hh = wanted(g.dweight_hh, "dweight_hh", true);
    call.dweight_ch = wanted(g.dweight_ch, "dweight_ch", c_.peepholes);
    call.dweight_hr = wanted(g.dweight_hr, "dweight_hr", c_.P);
    call.dhx = g.dhx.data();
    call.dcx = g.dcx.data();
    call.workspace = workspace.data();
    kernels_.backward(call, c_.threads);
    return g;
  }

  void compare_gradients(Gradients g) {
    const int64_t terms = c_.T * c_.B + 4 * c_.H + c_.I;
    const auto check = [&](const char* name, const Buffer& found, const reference::Array& expected,
                           bool exists) {
      if (exists && c_.has(name)) compare(name, found, expected, terms);
    };
    check("dhx", g.dhx, expected_.dhx, true);
    check("dcx", g.dcx, expected_.dcx, true);
    if (c_.has("dinput")) compare_dinput(g.dinput, terms);
    check("dweight_ih", g.dweight_ih, expected_.dweight_ih, c_.I);
    check("dbias", g.dbias, expected_.dbias, c_.I);
    check("dweight_hh", g.dweight_hh, expected_.dweight_hh, true);
    check("dweight_ch", g.dweight_ch, expected_.dweight_ch, c_.peepholes);
    check("dweight_hr", g.dweight_hr, expected_.dweight_hr, c_.P);
  }

  // If groups share x, dx is the sum over the groups. Gaps between rows must not be written.
  void compare_dinput(Rows& dinput, int64_t terms) {
    reference::Array expected(dinput.buffer.count());
    std::vector<bool> is_gap(dinput.buffer.count(), true);
    dinput.for_each([&](int64_t at, int64_t index, int64_t, int64_t) {
      expected[at] += expected_.dinput[index];
      is_gap[at] = false;
    });
    for (int64_t i = 0; i < dinput.buffer.count(); ++i) {
      if (!is_gap[i]) continue;
      if (!dinput.buffer.is_untouched(i)) return fail("dinput", i, "is a gap, but written");
      dinput.buffer.set(i, 0);
    }
    compare("dinput", dinput.buffer, expected, terms);
  }

  // The largest error allowed, relative to the array's largest number. A sum of N terms is rounded
  // N times, up or down at random, so its error grows like sqrt(N) eps of the type it is summed in.
  // The longest sum is a projection in the forward pass and the gradient of a weight in the
  // backward pass. 4 more eps are for the activations and earlier steps; the factor 4 is because
  // the largest of thousands of errors counts. (Found: a third of the tolerance.)
  // bfloat16 is summed in float32, but h, the gates and their gradients are rounded to bfloat16 at
  // every step. These errors fade over a few steps, as the state does (found: 1.4 eps).
  double tolerance(int64_t terms) const {
    const double sums = 4 * eps_of(sums_) * (4 + std::sqrt(static_cast<double>(terms)));
    return c_.dtype == DType::bfloat16 ? sums + 4 * eps_of(c_.dtype) : sums;
  }

  void compare(const char* name, const Buffer& found, const reference::Array& expected,
               int64_t terms) {
    double scale = 0;
    for (const double value : expected) scale = std::max(scale, std::abs(value));
    const double limit = tolerance(terms) * scale;
    double worst = 0;
    for (int64_t i = 0; i < found.count(); ++i) {
      const double error = std::abs(found.get(i) - expected[i]);
      if (!(error <= limit)) {  // nor is a NaN
        char text[200];
        std::snprintf(text, sizeof(text), "is %.9g, expected %.9g within %.2g", found.get(i),
                      expected[i], limit);
        return fail(name, i, text);
      }
      worst = std::max(worst, error);
    }
    if (limit > 0) report_.add_error(worst / limit);
  }

  void fail(const char* name, int64_t i, const std::string& what) {
    report_.fail(std::string(kernels_.isa) + " " + c_.describe(),
                 std::string(name) + "[" + std::to_string(i) + "] " + what);
  }

  const Case& c_;
  const Inputs& in_;
  const reference::Results& expected_;
  const cpu::Kernels& kernels_;
  Report& report_;
  const DType sums_;
  LstmShape shape_;
  LstmCellOptions options_{};
  Buffer prepacked_;
};

}  // namespace fastlstm

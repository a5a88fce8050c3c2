// The calls that plans.cpp and thread_model.cpp time: float32, one group, no lengths.
#pragma once

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <sstream>

#include "../tests/native/case.h"

namespace fastlstm {

constexpr const char* kPasses[] = {"inference", "training", "backward"};

// The case that "T,B,I,H" says.
inline Case case_of(const char* shape) {
  Case c;
  c.G = 1, c.reverse = 0, c.peepholes = false;
  char comma;
  std::istringstream(shape) >> c.T >> comma >> c.B >> comma >> c.I >> comma >> c.H;
  return c;
}

// The calls of one shape, and their memory.
class Calls {
 public:
  explicit Calls(const Case& c) : inputs_(c) {
    const int64_t gates = 4 * c.H, states = c.B * c.H;
    LstmCall call{};
    call.shape.dtype = c.dtype;
    call.shape.T = c.T, call.shape.B = c.B, call.shape.G = c.G;
    call.shape.H = c.H, call.shape.I = c.I;
    call.shape.reverse = inputs_.reverse.get();
    call.input = inputs_.input.buffer.data();
    std::copy_n(inputs_.input.stride, 3, call.input_stride);
    call.weight_ih = inputs_.weight_ih.weight(c.dtype);
    call.bias_ih = inputs_.bias_ih.weight(c.dtype);
    call.bias_hh = inputs_.bias_hh.weight(c.dtype);
    call.weight_hh = inputs_.weight_hh.weight(c.dtype);
    call.hx = inputs_.hx.data(), call.cx = inputs_.cx.data();

    for (LstmForward* forward : {&inference_, &training_}) {
      static_cast<LstmCall&>(*forward) = call;
      forward->y = result(c.T * states);
      forward->hy = result(states), forward->cy = result(states);
    }
    training_.reserve = result(c.T * c.B * 5 * c.H);

    static_cast<LstmCall&>(backward_) = call;
    backward_.dy = inputs_.dy.buffer.data();
    std::copy_n(inputs_.dy.stride, 3, backward_.dy_stride);
    backward_.y = training_.y, backward_.reserve = training_.reserve;
    backward_.dinput = result(c.T * c.B * c.I);
    std::copy_n(inputs_.input.stride, 3, backward_.dinput_stride);
    backward_.dweight_ih = result(gates * c.I);
    backward_.dbias = result(gates);
    backward_.dweight_hh = result(gates * c.H);
    backward_.dhx = result(states), backward_.dcx = result(states);
  }

  // Makes the workspace large enough for calls on so many threads, as they are cut now, and clears
  // it: a simulation reads what other threads would have written there.
  void make_room(int threads) {
    const size_t bytes = std::max(kernels_.forward_workspace(inference_.shape, threads),
                                  kernels_.backward_workspace(inference_.shape, threads));
    if (bytes > workspace_.count() * sizeof(float)) {
      workspace_ = Buffer(DType::float32, bytes / sizeof(float));
      inference_.workspace = training_.workspace = backward_.workspace = workspace_.data();
    }
    std::memset(workspace_.data(), 0, workspace_.count() * sizeof(float));
  }

  void run(const std::string& pass, int threads) const {
    if (pass == "backward") return kernels_.backward(backward_, threads);
    kernels_.forward(pass == "inference" ? inference_ : training_, threads);
  }

  std::vector<Buffer>& results() { return results_; }

 private:
  void* result(int64_t count) {
    results_.emplace_back(DType::float32, count);
    return results_.back().data();
  }

  Inputs inputs_;
  const cpu::Kernels& kernels_ = cpu::kernels("auto");
  LstmForward inference_{}, training_{};
  LstmBackward backward_{};
  std::vector<Buffer> results_;
  Buffer workspace_;
};

// Seconds a call.
template <class Call>
double time(int calls, const Call& call) {
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < calls; ++i) call();
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  return took.count() / calls;
}

inline double median(std::vector<double> list) {
  std::nth_element(list.begin(), list.begin() + list.size() / 2, list.end());
  return list[list.size() / 2];
}

}  // namespace fastlstm

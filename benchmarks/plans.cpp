// Times the ways to divide a call among threads: one thread, all threads by rows of the batch, all
// threads by panels of hidden units, and the one that csrc/cpu/cost.h chooses.
//
//   make plans                                 the shapes below
//   make plans SHAPES="100,1,64,64 8,1,32,32"  others: T,B,I,H
//
// Prints a table in Markdown: microseconds a call in float32 with one group, the median of rounds
// in turns. Before that it checks the results of every plan against those of one thread.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <thread>

#include "../tests/native/case.h"

namespace fastlstm {

namespace {

constexpr int kRounds = 15;
constexpr double kRoundSeconds = 0.002;  // at least, of each plan
constexpr double kLargestError = 1e-5;   // relative to the array's largest number

constexpr const char* kPasses[] = {"inference", "training", "backward"};
constexpr const char* kShapes[] = {
    "1,4,64,64",     "2,4,64,64",     "8,1,32,32",     "200,1,32,32",   "50,1,48,48",
    "100,1,64,64",   "100,2,64,64",   "100,4,64,64",   "100,2,128,128", "100,4,128,128",
    "100,8,128,128", "50,4,256,256",  "50,8,256,256",  "35,20,200,200", "16,4,32,32",
    "50,5,64,64",    "50,3,80,80",    "20,32,512,512", "20,1,32,32",    "100,8,32,32",
    "100,16,64,64",  "100,1,96,96",   "100,1,128,128", "50,16,128,128", "100,6,192,192",
    "50,1,256,256",  "50,16,256,256", "20,1,512,512",  "20,8,512,512",  "20,16,512,512",
};

struct Plan {
  cpu::ForcedPlan forced;
  int threads;
};

// The plans, in the order of the table's columns.
std::vector<Plan> plans() {
  const int all = static_cast<int>(std::thread::hardware_concurrency());
  using Forced = cpu::ForcedPlan;
  return {{Forced::none, 1}, {Forced::rows, all}, {Forced::panels, all}, {Forced::none, all}};
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
    call.workspace = workspace(call.shape);

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

  void run(const std::string& pass, const Plan& plan) {
    cpu::forced_plan = plan.forced;
    if (pass == "backward") return kernels_.backward(backward_, plan.threads);
    kernels_.forward(pass == "inference" ? inference_ : training_, plan.threads);
  }

  // Whether a plan gives the results of one thread.
  bool are_right(const Plan& plan) {
    const std::vector<double> expected = results_of(plans()[0]), found = results_of(plan);
    for (size_t i = 0; i < found.size(); ++i) {
      if (!(std::abs(found[i] - expected[i]) < kLargestError)) return false;  // nor is a NaN
    }
    return true;
  }

 private:
  // All results, each divided by its array's largest number.
  std::vector<double> results_of(const Plan& plan) {
    for (Buffer& buffer : results_) {
      for (int64_t i = 0; i < buffer.count(); ++i) buffer.poison(i);
    }
    for (const char* pass : kPasses) run(pass, plan);
    std::vector<double> numbers;
    for (const Buffer& buffer : results_) {
      const int64_t count = buffer.count();
      double largest = 0;
      for (int64_t i = 0; i < count; ++i) largest = std::max(largest, std::abs(buffer.get(i)));
      for (int64_t i = 0; i < count; ++i) numbers.push_back(buffer.get(i) / largest);
    }
    return numbers;
  }

  void* result(int64_t count) {
    results_.emplace_back(DType::float32, count);
    return results_.back().data();
  }

  // A workspace that suits every plan.
  void* workspace(const LstmShape& shape) {
    size_t bytes = 0;
    for (const Plan& plan : plans()) {
      cpu::forced_plan = plan.forced;
      bytes = std::max(bytes, kernels_.forward_workspace(shape, plan.threads));
      bytes = std::max(bytes, kernels_.backward_workspace(shape, plan.threads));
    }
    workspace_ = Buffer(DType::float32, bytes / sizeof(float));
    return workspace_.data();
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

// Prints a row of the table.
void time_plans(const char* shape, const char* pass, Calls& calls) {
  std::vector<std::vector<double>> times(plans().size());
  for (int round = 0; round < kRounds; ++round) {
    for (size_t i = 0; i < times.size(); ++i) {
      const auto call = [&, plan = plans()[i]] { calls.run(pass, plan); };
      const double once = time(2, call);  // the threads and caches are warm afterwards
      times[i].push_back(time(1 + static_cast<int>(kRoundSeconds / once), call) * 1e6);
    }
  }
  std::printf("| %s | %s |", shape, pass);
  std::vector<double> medians;
  for (std::vector<double>& list : times) {
    std::nth_element(list.begin(), list.begin() + kRounds / 2, list.end());
    medians.push_back(list[kRounds / 2]);
    std::printf(medians.back() < 100 ? " %.1f |" : " %.0f |", medians.back());
  }
  std::printf(" %.2f |\n", medians[3] / *std::min_element(medians.begin(), medians.begin() + 3));
  std::fflush(stdout);
}

}  // namespace
}  // namespace fastlstm

int main(int count, char** arguments) {
  using namespace fastlstm;
  std::vector<const char*> shapes(arguments + 1, arguments + count);
  if (shapes.empty()) shapes.assign(std::begin(kShapes), std::end(kShapes));
  std::printf(
      "%s, %d threads\n\n"
      "| T, B, I, H | pass | one thread | by rows | by panels | chosen | chosen / best |\n"
      "|---|---|---:|---:|---:|---:|---:|\n",
      cpu::kernels("auto").isa, plans().back().threads);
  for (const char* shape : shapes) {
    Case c;
    c.G = 1, c.reverse = 0, c.peepholes = false;
    char comma;
    std::istringstream(shape) >> c.T >> comma >> c.B >> comma >> c.I >> comma >> c.H;
    Calls calls(c);
    for (const Plan& plan : plans()) {
      if (calls.are_right(plan)) continue;
      std::printf("%s: the results differ from those of one thread\n", shape);
      return EXIT_FAILURE;
    }
    for (const char* pass : kPasses) time_plans(shape, pass, calls);
  }
}

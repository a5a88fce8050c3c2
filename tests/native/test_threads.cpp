// Tests the CPU kernels on up to 64 threads, however few cores there are: the barriers of a team
// and of its parts, and every way to cut a call. `make sanitize` runs it with sanitizers.
#include <atomic>
#include <cstring>
#include <thread>

#include "../../csrc/cpu/team.h"
#include "run.h"

namespace fastlstm {
namespace {

// At no barrier does a thread leave before the last one has come, in teams and in parts of them.
void test_barriers(int threads, Report& report) {
  constexpr int kSteps = 20;
  report.add_case();
  std::vector<cpu::Progress> progress(threads);
  const int size = threads > 3 ? threads / 2 : 1;  // of a part
  std::vector<int> steps(threads);                 // not atomic: the barriers order the accesses
  std::atomic<int> early{0};
  cpu::run_team(progress.data(), threads, threads, [&](cpu::Team team) {
    const int first = team.thread() / size * size, me = team.thread();
    const int count = std::min(size, team.size() - first);
    cpu::Team part = team.part(first, count);
    const auto check = [&](int begin, int end, int step) {
      for (int other = begin; other < end; ++other) early += steps[other] != step;
    };
    for (int step = 1; step <= 2 * kSteps; step += 2) {
      steps[me] = step;
      part.barrier();
      check(first, first + count, step);
      team.barrier();
      check(0, team.size(), step);
      team.barrier();
      steps[me] = step + 1;
      team.barrier();
      check(0, team.size(), step + 1);
      team.barrier();
    }
  });
  if (early) report.fail(std::to_string(threads) + " threads", "a barrier opens too early");
}

// After the rounds of a barrier every thread has heard of all others, and the number of rounds is
// the logarithm of the number of threads to the base 4.
void test_rounds(int threads, Report& report) {
  report.add_case();
  using Heard = std::vector<bool>;
  std::vector<Heard> heard(threads, Heard(threads));
  for (int thread = 0; thread < threads; ++thread) heard[thread][thread] = true;
  int expected = 0, rounds = 1;
  for (int reached = 1; reached < threads; reached *= 4) ++expected;
  for (int round = 0; round < rounds; ++round) {
    const std::vector<Heard> before = heard;
    for (int thread = 0; thread < threads; ++thread) {
      int at = -1;
      const auto wait = [&](int other) {
        for (int i = 0; i < threads && at == round; ++i) {
          if (before[other][i]) heard[thread][i] = true;
        }
      };
      cpu::Team::for_each_wait(thread, threads, [&] { ++at; }, wait);
      rounds = at + 1;
    }
  }
  const std::string where = std::to_string(threads) + " threads";
  if (rounds != expected) report.fail(where, "has " + std::to_string(rounds) + " rounds");
  for (const Heard& of : heard) {
    if (std::count(of.begin(), of.end(), true) != threads) report.fail(where, "is not complete");
  }
}

constexpr cpu::ForcedPlan kPlans[] = {cpu::ForcedPlan::rows, cpu::ForcedPlan::panels,
                                      cpu::ForcedPlan::cut, cpu::ForcedPlan::none};

// Every way to cut a call, on fewer and on more threads than it has rows and panels.
std::vector<Case> thread_cases(int threads, bool all) {
  const int64_t sizes[][4] = {{5, 9, 70, 33}, {6, 1, 40, 0}, {4, 30, 100, 20}, {12, 5, 17, 9}};
  std::vector<Case> cases;
  for (const auto& [T, B, H, I] : sizes) {
    for (const DType dtype : {DType::float32, DType::float64, DType::bfloat16}) {
      if (!all && (dtype == DType::float64) != (B == 1)) continue;
      Case c;
      c.dtype = dtype;
      c.T = T, c.B = B, c.H = H, c.I = I;
      c.threads = threads;
      c.repeats = true;
      c.G = 1 + cases.size() % 2;
      c.lengths = cases.size() % 3 == 2;
      c.reset = cases.size() % 4 == 1;
      c.cells = true;
      c.P = cases.size() % 3 == 1 ? 40 : 0;
      c.mask = c.keep_c = c.P == 0 && cases.size() % 4 == 3;
      c.checkpoint_every = cases.size() % 3 && !c.mask ? 2 : 0;  // no options beside checkpoints
      c.keeps_y = cases.size() % 2;
      cases.push_back(c);
    }
  }
  return cases;
}

// The kernels of layer norm: a cut into any parts gives the results of one thread, and the same
// bits every time. tests/test_layer_norm_kernels.py compares them with the reference.
class NormCall {
 public:
  NormCall(const Case& c, const cpu::Kernels& kernels)
      : c_(c),
        in_(c),
        kernels_(kernels),
        norm_hh_(c.dtype, c.G * 4 * c.H),
        norm_c_(c.dtype, c.G * 2 * c.H) {
    for (int64_t i = 0; i < norm_hh_.count(); ++i) norm_hh_.set(i, 1 + 0.01 * (i % 7));
    for (int64_t i = 0; i < norm_c_.count(); ++i) norm_c_.set(i, 0.9 + 0.02 * (i % 5));
  }

  // Every result, one after the other.
  std::vector<double> run(int threads) {
    const int64_t states = c_.G * c_.B * c_.H, rows = c_.T * c_.B * c_.G;
    const auto numbers = [&](int64_t count) { return Buffer(c_.dtype, count); };
    Buffer y = numbers(rows * c_.H), hy = numbers(states), cy = numbers(states),
           reserve = numbers(rows * 9 * c_.H), dinput = numbers(rows * 4 * c_.H),
           dweight_hh = numbers(c_.G * 4 * c_.H * c_.H), dweight_ch = numbers(c_.G * 3 * c_.H),
           dnorm_hh = numbers(c_.G * 4 * c_.H), dnorm_c = numbers(c_.G * 2 * c_.H),
           dhx = numbers(states), dcx = numbers(states);
    LstmCall call{};
    call.shape.dtype = c_.dtype;
    call.shape.T = c_.T, call.shape.B = c_.B, call.shape.G = c_.G, call.shape.H = c_.H;
    call.shape.reverse = in_.reverse.get();
    call.input = in_.input.buffer.data();
    std::copy_n(in_.input.stride, 3, call.input_stride);
    call.weight_hh = in_.weight_hh.weight(c_.dtype);
    call.weight_ch = in_.weight_ch.weight(c_.dtype);
    call.hx = in_.hx.data(), call.cx = in_.cx.data();
    CellNorms norms{};
    norms.norm_hh = norm_hh_.data(), norms.norm_c = norm_c_.data();

    LayerNormForward forward{};
    static_cast<LstmCall&>(forward) = call;
    forward.norms = norms;
    forward.y = y.data(), forward.hy = hy.data(), forward.cy = cy.data();
    forward.reserve = reserve.data();
    const Buffer memory(DType::bfloat16,
                        kernels_.layer_norm_forward_workspace(call.shape, threads) / 2);
    forward.workspace = memory.data();
    kernels_.layer_norm_forward(forward, threads);

    LayerNormBackward backward{};
    static_cast<LstmCall&>(backward) = call;
    backward.norms = norms;
    backward.dy = in_.dy.buffer.data();
    std::copy_n(in_.dy.stride, 3, backward.dy_stride);
    backward.reserve = reserve.data(), backward.y = y.data();
    backward.dinput = dinput.data();
    std::copy_n(in_.input.stride, 3, backward.dinput_stride);
    backward.dweight_hh = dweight_hh.data(), backward.dweight_ch = dweight_ch.data();
    backward.dnorm_hh = dnorm_hh.data(), backward.dnorm_c = dnorm_c.data();
    backward.dhx = dhx.data(), backward.dcx = dcx.data();
    const Buffer more(DType::bfloat16,
                      kernels_.layer_norm_backward_workspace(call.shape, threads) / 2);
    backward.workspace = more.data();
    kernels_.layer_norm_backward(backward, threads);

    std::vector<double> all;
    for (const Buffer* each : {&y, &hy, &cy, &reserve, &dinput, &dweight_hh, &dweight_ch, &dnorm_hh,
                               &dnorm_c, &dhx, &dcx}) {
      for (int64_t i = 0; i < each->count(); ++i) all.push_back(each->get(i));
    }
    return all;
  }

 private:
  const Case& c_;
  const Inputs in_;
  const cpu::Kernels& kernels_;
  Buffer norm_hh_, norm_c_;
};

void test_layer_norm(int threads, Report& report) {
  for (const int64_t B : {1, 11}) {
    Case c;
    c.T = 4, c.B = B, c.H = 50, c.I = 0, c.threads = threads;
    for (const std::string& isa : cpu::isas()) {
      report.add_case();
      NormCall call(c, cpu::kernels(isa));
      const std::vector<double> expected = call.run(1), found = call.run(threads);
      const std::string where = isa + " layer norm " + c.describe();
      double largest = 0, worst = 0;
      for (size_t i = 0; i < found.size(); ++i) {
        largest = std::max(largest, std::abs(expected[i]));
        const double error = std::abs(found[i] - expected[i]);
        worst = error <= worst ? worst : error;  // a NaN too
      }
      if (!(worst <= 3e-6 * largest)) report.fail(where, "differs by " + std::to_string(worst));
      if (call.run(threads) != found) report.fail(where, "has other bits the second time");
    }
  }
}

int run() {
  Report report;
  for (const int threads : {1, 2, 3, 4, 5, 8, 17, 64}) test_barriers(threads, report);
  for (const int threads : {2, 3, 4, 5, 7, 16, 17, 63, 64, 65, 128}) test_rounds(threads, report);
  for (const int threads : {2, 4, 7, 16, 64}) {
    for (const cpu::ForcedPlan plan : kPlans) {
      cpu::forced_plan = plan;
      test_layer_norm(threads, report);
      for (const Case& c : thread_cases(threads, threads < 10)) {
        const Inputs inputs(c);
        const reference::Results expected = reference::run(inputs.problem);
        for (const std::string& isa : cpu::isas()) {
          Run(c, inputs, expected, cpu::kernels(isa), report).run();
        }
      }
    }
  }
  return report.summary();
}

}  // namespace
}  // namespace fastlstm

int main() { return fastlstm::run(); }

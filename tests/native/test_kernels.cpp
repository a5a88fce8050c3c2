// Tests the kernels of csrc/cpu without Python, against loops over doubles: every instruction set
// of this machine, every pointer that may be null, every layout of the arrays.
//
// Prints a line for each wrong result, then the number of cases. `make sanitize` runs it with
// sanitizers: each array is a heap block of its own, so that an access beyond it is found.
#include <thread>

#include "run.h"

namespace fastlstm {
namespace {

void run_everywhere(const Case& c, Report& report) {
  const Inputs inputs(c);
  const reference::Results expected = reference::run(inputs.problem);
  for (const std::string& isa : cpu::isas()) {
    Run(c, inputs, expected, cpu::kernels(isa), report).run();
  }
}

constexpr DType kTypes[] = {DType::float32, DType::float64, DType::bfloat16};

// Every H with every I and type, with and without peepholes; the other options are random.
std::vector<Case> mixed_cases() {
  std::vector<Case> cases;
  std::mt19937 random(1);
  const auto one_of = [&](auto... choices) {
    const int64_t list[] = {static_cast<int64_t>(choices)...};
    return list[random() % (sizeof(list) / sizeof(*list))];
  };
  for (const int64_t H : {1, 5, 17, 33, 64, 70}) {
    for (const int64_t I : {0, 1, 9, 40}) {
      for (int kind = 0; kind < 12; ++kind) {
        Case c;
        c.dtype = kTypes[kind % 3];
        c.peepholes = kind / 3 % 2;
        c.H = H, c.I = I;
        c.T = one_of(1, 2, 7, 40);
        c.B = 1 + random() % 13;
        c.G = one_of(1, 2);
        c.reverse = one_of(0, 1, 2, 3);
        c.threads = one_of(1, 2, 3);
        c.lengths = one_of(0, 1);
        c.bias_ih = one_of(0, 1);
        c.bias_hh = one_of(0, 1);
        c.backwards_weights = one_of(0, 1);
        c.packing = static_cast<Packing>(random() % 4);
        c.input = static_cast<Layout>(random() % 7);
        c.dy = static_cast<Layout>(random() % 7);
        c.shift = one_of(0, 1, 3);
        c.P = one_of(0, 0, 1, 16, 33);
        c.packed_rows = one_of(0, 0, 1);
        c.reset = one_of(0, 1);
        c.cells = one_of(0, 1);
        c.checkpoint_every = one_of(0, 1, 2, 3, 7, 50);
        c.keeps_y = one_of(0, 1);
        if (c.packed_rows) c.input = c.dy = Layout::contiguous;
        if (c.T * c.B * c.G * H * (H + I) > 1'000'000) c.T = 7;  // keeps the whole run to seconds
        cases.push_back(c);
      }
    }
  }
  return cases;
}

// Every pointer that may be null, alone and together with others.
std::vector<Case> null_cases() {
  std::vector<Case> cases;
  for (const DType dtype : kTypes) {
    for (const int64_t I : {0, 9}) {
      for (const char* null : {" reserve ", " dinput ", " dweight_ih ", " dbias ", " dweight_hh ",
                               " dweight_ch ", " dweight_hr ", " dcells ", " dy ", " dhy ", " dcy ",
                               " dy dhy dcy ", " dweight_ih dbias dweight_hh dweight_ch ",
                               " dinput dweight_ih dbias dweight_hh dweight_ch "}) {
        Case c;
        c.dtype = dtype;
        c.T = 5, c.B = 7, c.I = I;
        c.lengths = true;
        c.input = I ? Layout::shared : Layout::contiguous;
        c.null = null;
        c.P = cases.size() % 3 ? 0 : 9;
        c.cells = true;
        c.threads = 1 + static_cast<int>(cases.size() % 3);
        cases.push_back(c);
      }
    }
  }
  return cases;
}

// More steps, rows, columns or units than the kernels process at a time.
std::vector<Case> large_cases() {
  const int64_t sizes[][4] = {{300, 3, 20, 33}, {3, 300, 9, 30},  {2, 70, 70, 300},
                              {1, 2, 130, 600}, {160, 7, 9, 5},   {1, 6, 150, 0},
                              {2, 3, 100, 20},  {1, 1, 300, 0},   {4, 1, 140, 1100},
                              {9, 60, 33, 0},   {3, 45, 200, 70}, {2, 17, 260, 0}};
  std::vector<Case> cases;
  for (const auto& [T, B, H, I] : sizes) {
    for (const DType dtype : kTypes) {
      Case c;
      c.dtype = dtype;
      c.T = T, c.B = B, c.H = H, c.I = I;
      c.G = 1 + cases.size() / 3 % 2;
      c.threads = 1 + static_cast<int>(cases.size() % 3);
      c.lengths = cases.size() % 2;
      c.packed_rows = cases.size() % 4 == 3;
      c.reset = cases.size() % 5 == 4;
      c.P = cases.size() % 3 == 1 ? 40 : 0;
      c.checkpoint_every = 1 + cases.size() * 7 % 31;
      c.keeps_y = cases.size() % 7 < 3;
      cases.push_back(c);
    }
  }
  return cases;
}

// Every subset of the cells' options.
std::vector<Case> option_cases() {
  std::vector<Case> cases;
  for (int options = 1; options < 16; ++options) {
    for (int kind = 0; kind < 12; ++kind) {
      Case c;
      c.dtype = kTypes[kind % 3];
      c.mask = options & 1, c.keep_h = options & 2, c.keep_c = options & 4;
      // In bfloat16 a sum next to the limit may be rounded to its other side.
      if (options & 8) c.cell_clip = c.dtype == DType::bfloat16 ? 4 : 0.5;
      c.T = kind < 3 ? 1 : 6, c.B = kind < 6 ? 2 : 11, c.H = kind < 9 ? 17 : 40;
      c.I = kind % 2 ? 9 : 0;
      c.peepholes = options % 2 || kind % 4 == 0;
      c.lengths = kind % 4 > 1, c.reset = kind % 5 > 2, c.cells = kind % 2;
      c.packed_rows = kind == 7 || kind == 8;
      c.threads = 1 + kind % 3;
      c.shift = kind % 2;
      c.keep = c.packed_rows ? Layout::contiguous : static_cast<Layout>((options + kind) % 7);
      cases.push_back(c);
    }
  }
  return cases;
}

// Calls from several threads at once, each of which runs on several threads.
void run_at_once(const std::vector<Case>& cases, Report& report) {
  constexpr size_t kCallers = 4;
  std::vector<std::thread> callers;
  for (size_t caller = 0; caller < kCallers; ++caller) {
    callers.emplace_back([&, caller] {
      for (size_t i = caller; i < cases.size(); i += kCallers) run_everywhere(cases[i], report);
    });
  }
  for (std::thread& caller : callers) caller.join();
}

int run() {
  Report report;
  const std::vector<Case> nulls = null_cases();
  for (const auto& cases : {mixed_cases(), nulls, large_cases(), option_cases()}) {
    for (const Case& c : cases) run_everywhere(c, report);
  }
  run_at_once(nulls, report);
  return report.summary();
}

}  // namespace
}  // namespace fastlstm

int main() { return fastlstm::run(); }

// Times the ways to divide a call among threads: one thread, all threads by rows of the batch, all
// threads by panels of hidden units, and the one that csrc/cpu/cost.h chooses.
//
//   make plans                                 the shapes below
//   make plans SHAPES="100,1,64,64 8,1,32,32"  others: T,B,I,H
//
// Prints a table in Markdown: microseconds a call in float32 with one group, the median of rounds
// in turns. Before that it checks the results of every plan against those of one thread.
#include <thread>

#include "calls.h"

namespace fastlstm {
namespace {

constexpr int kRounds = 15;
constexpr double kRoundSeconds = 0.002;  // at least, of each plan
constexpr double kLargestError = 1e-5;   // relative to the array's largest number

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

void run(Calls& calls, const char* pass, const Plan& plan) {
  cpu::forced_plan = plan.forced;
  calls.run(pass, plan.threads);
}

// All results, each divided by its array's largest number.
std::vector<double> results_of(Calls& calls, const Plan& plan) {
  for (Buffer& buffer : calls.results()) {
    for (int64_t i = 0; i < buffer.count(); ++i) buffer.poison(i);
  }
  for (const char* pass : kPasses) run(calls, pass, plan);
  std::vector<double> numbers;
  for (const Buffer& buffer : calls.results()) {
    const int64_t count = buffer.count();
    double largest = 0;
    for (int64_t i = 0; i < count; ++i) largest = std::max(largest, std::abs(buffer.get(i)));
    for (int64_t i = 0; i < count; ++i) numbers.push_back(buffer.get(i) / largest);
  }
  return numbers;
}

// Whether a plan gives the results of one thread.
bool are_right(Calls& calls, const Plan& plan) {
  const std::vector<double> expected = results_of(calls, plans()[0]);
  const std::vector<double> found = results_of(calls, plan);
  for (size_t i = 0; i < found.size(); ++i) {
    if (!(std::abs(found[i] - expected[i]) < kLargestError)) return false;  // nor is a NaN
  }
  return true;
}

// Prints a row of the table.
void time_plans(const char* shape, const char* pass, Calls& calls) {
  std::vector<std::vector<double>> times(plans().size());
  for (int round = 0; round < kRounds; ++round) {
    for (size_t i = 0; i < times.size(); ++i) {
      const auto call = [&, plan = plans()[i]] { run(calls, pass, plan); };
      const double once = time(2, call);  // the threads and caches are warm afterwards
      times[i].push_back(time(1 + static_cast<int>(kRoundSeconds / once), call) * 1e6);
    }
  }
  std::printf("| %s | %s |", shape, pass);
  std::vector<double> medians;
  for (const std::vector<double>& list : times) {
    medians.push_back(median(list));
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
    Calls calls(case_of(shape));
    for (const Plan& plan : plans()) {
      cpu::forced_plan = plan.forced;
      calls.make_room(plan.threads);
    }
    for (const Plan& plan : plans()) {
      if (are_right(calls, plan)) continue;
      std::printf("%s: the results differ from those of one thread\n", shape);
      return EXIT_FAILURE;
    }
    for (const char* pass : kPasses) time_plans(shape, pass, calls);
  }
}

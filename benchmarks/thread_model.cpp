// Computes the time of a call on up to 128 threads, from measurements on this machine.
//
//   make thread-model                           the grid of benchmarks/suites.py
//   make thread-model SHAPES="100,32,256,256"   others: T,B,I,H
//
// The kernels themselves run the share of one thread at a time, alone, cut as for n threads
// (cpu::Simulation). So the schedule is that of csrc/cpu, and each tile, task and packing is timed
// where it is, with the weights of one thread in the cache of one core. kSampled threads run.
// Between two barriers of the team the slowest counts; but tasks count with their mean, since
// threads take those of each other. Added to that are, computed:
//   - barriers: the rounds of team.h, with the exchange and the load that two threads take here;
//   - the rows that the threads of a part exchange at every step: a load, and the time of a byte;
//   - waking the threads: as measured for two, and kWakeThreadTime of cost.h for each other one.
// Assumed: kWakeThreadTime; that each thread has a core, and that threads do not slow down each
// other's memory; and that everything between two nodes of memory takes kRemote times as
// long. On one thread the computed time is measured in the same way as the other, and shows the
// noise. Two threads are a test of the model.
#include "../csrc/cpu/cost.h"
#include "../csrc/cpu/team.h"
#include "calls.h"

namespace fastlstm {
namespace {

// Seconds by a clock: the wall's, or that of a thread's processor time, which on a busy machine
// leaves out what other programs take. It is a system call, too slow for short calls; of those the
// fastest twentieth counts instead. On a quiet machine all of them are the same.
double now(clockid_t clock) {
  timespec time;
  clock_gettime(clock, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

constexpr double kRemote = 2;
constexpr int kSampled = 3;
constexpr int kThreads[] = {1, 2, 4, 8, 16, 32, 64, 128}, kMost = 128;
constexpr double kSeconds = 1;  // of the rounds of a shape's pass, at least
constexpr int kFewestRounds = 3, kMostRounds = 200;
constexpr double kLongCall = 0.005;  // is measured in processor time

// What one thread does between two barriers of the whole team.
struct Segment {
  double work = 0;                                 // seconds
  int waits = 0, part_threads = 1, row_parts = 1;  // barriers of a part, and how large that is
  bool has_tasks = false;
};

void read(const std::vector<int64_t>& numbers, size_t count) {
  asm volatile("" : : "r"(std::accumulate(numbers.data(), numbers.data() + count, int64_t{0})));
}

struct Recorder {
  std::vector<Segment> segments;
  std::vector<int64_t> weights;  // of the size of W_hh
  clockid_t clock = CLOCK_MONOTONIC;
  double last = 0, cost[2] = {};  // seconds; to read the wall's clock, and the other one

  void start() {
    segments.assign(1, {});
    last = now(clock);
  }
  void stop() {
    segments.back().work += std::max(now(clock) - last - cost[clock != CLOCK_MONOTONIC], 0.0);
  }
} recorder;

void at_barrier(int threads, bool is_part) {
  recorder.stop();
  Segment& segment = recorder.segments.back();
  segment.has_tasks |= cpu::simulation.has_tasks;
  cpu::simulation.has_tasks = false;
  if (is_part) {
    ++segment.waits;
    segment.part_threads = threads, segment.row_parts = cpu::simulation.row_parts;
    // What does not stay in L2 shares L3 with the parts of W_hh that the other threads read.
    const size_t all = recorder.weights.size(), part = all / threads;
    if (part * sizeof(int64_t) > cpu::kL2WeightBytes) read(recorder.weights, all - part);
  } else {
    recorder.segments.push_back({});
  }
  recorder.last = now(recorder.clock);
}

// Measurements of two threads, in seconds: to publish a step of a barrier, to load that of another
// thread, to read a byte that another thread has written, and to wake that thread for a call.
struct Machine {
  double exchange, load, byte, wake;
  clockid_t clocks[2];  // of the threads' processor time
};

// The time of the fastest twentieth.
double fast(std::vector<double> list) {
  std::sort(list.begin(), list.end());
  return list[list.size() / 20];
}

Machine measure_machine() {
  constexpr int kSteps = 100, kBytes = 32 * 1024;
  Machine machine;
  std::vector<double> exchanges, barriers, bytes, wakes, costs[2];
  std::vector<cpu::Progress> progress(2);
  std::vector<int64_t> numbers(kBytes / sizeof(int64_t));
  int32_t steps = 0;
  cpu::run_team(progress.data(), 2, 2, [&](cpu::Team team) {
    pthread_getcpuclockid(pthread_self(), &machine.clocks[team.thread()]);
  });
  for (const double start = now(CLOCK_MONOTONIC); now(CLOCK_MONOTONIC) - start < 2 * kSeconds;) {
    const auto empty = [&] { cpu::run_team(progress.data(), 2, 2, [](cpu::Team) {}); };
    for (int i = 0; i < 20; ++i) wakes.push_back(time(1, empty));
    costs[0].push_back(time(kSteps, [] { now(CLOCK_MONOTONIC); }));
    costs[1].push_back(time(kSteps, [] { now(CLOCK_THREAD_CPUTIME_ID); }));
    exchanges.push_back(time(
        kSteps, [&] { __atomic_exchange_n(&steps, static_cast<int32_t>(1), __ATOMIC_SEQ_CST); }));
    cpu::run_team(progress.data(), 2, 2, [&](cpu::Team team) {
      const bool reads = team.thread() == 1;
      team.barrier();
      const double took = time(kSteps, [&] { team.barrier(); });
      if (reads) barriers.push_back(took);
      for (int step = 0; step < 20; ++step) {
        if (!reads) std::fill(numbers.begin(), numbers.end(), step);
        team.barrier();
        const auto read_all = [&] { read(numbers, numbers.size()); };
        if (reads) {
          const double far = time(1, read_all), near = time(1, read_all);
          bytes.push_back(std::max(far - near, 0.0) / kBytes);
        }
        team.barrier();
      }
    });
  }
  for (const int i : {0, 1}) recorder.cost[i] = fast(costs[i]);
  machine.exchange = fast(exchanges), machine.load = fast(barriers) - machine.exchange;
  machine.byte = median(bytes), machine.wake = fast(wakes);
  return machine;
}

// The time of a barrier that all threads reach at once, in the rounds of cpu::Team, whose loads
// come one after the other. With two nodes, each has half of the threads.
double barrier(const Machine& machine, int threads, bool two_nodes) {
  std::vector<double> clock(threads);
  const auto node = [&](int thread) { return two_nodes && 2 * thread >= threads; };
  for (int round = 0, rounds = 1; round < rounds && threads > 1; ++round) {
    for (double& now : clock) now += machine.exchange;
    const std::vector<double> begun = clock;
    for (int thread = 0; thread < threads; ++thread) {
      int at = -1;
      const auto wait = [&](int other) {
        const double factor = node(thread) == node(other) ? 1 : kRemote;
        if (at == round) {
          clock[thread] = std::max(clock[thread], begun[other]) + factor * machine.load;
        }
      };
      cpu::Team::for_each_wait(thread, threads, [&] { ++at; }, wait);
      rounds = at + 1;
    }
  }
  return *std::max_element(clock.begin(), clock.end());
}

// Runs the share of one thread: a long call once, in processor time; a short one a few times more,
// of which the medians count.
std::vector<Segment> share_of(const Calls& calls, const char* call, int threads, int thread) {
  cpu::simulation.thread = thread;
  std::vector<std::vector<Segment>> runs;
  for (int run = 0, count = 6; run < count; ++run) {
    recorder.clock = run ? CLOCK_MONOTONIC : CLOCK_THREAD_CPUTIME_ID;
    const double start = now(CLOCK_THREAD_CPUTIME_ID);
    recorder.start();
    calls.run(call, threads);
    recorder.stop();
    if (run == 0 && now(CLOCK_THREAD_CPUTIME_ID) - start > kLongCall) count = 1;
    if (run || count == 1) runs.push_back(recorder.segments);
  }
  std::vector<Segment> result = runs.back();
  for (size_t i = 0; i < result.size(); ++i) {
    std::vector<double> times;
    for (const std::vector<Segment>& run : runs) times.push_back(run[i].work);
    result[i].work = median(times);
  }
  return result;
}

// The seconds of a call on `threads` threads, and on two nodes.
struct Computed {
  double time = 0, on_two_nodes = 0;
};

Computed compute(const Case& c, Calls& calls, const char* call, int threads,
                 const Machine& machine) {
  calls.make_room(threads);
  cpu::simulation.at_barrier = at_barrier;
  std::vector<std::vector<Segment>> shares;
  for (int i = 0, last = std::min(threads, kSampled) - 1; i <= last; ++i) {
    shares.push_back(share_of(calls, call, threads, last ? i * (threads - 1) / last : 0));
  }
  cpu::simulation.at_barrier = nullptr;
  const double row_bytes = 4 * static_cast<double>(call == kPasses[2] ? 4 * c.H : c.H);
  Computed result;
  for (const bool two_nodes : {false, true}) {
    double& time = two_nodes ? result.on_two_nodes : result.time;
    for (size_t i = 0; i < shares[0].size(); ++i) {
      double slowest = 0, sum = 0;
      bool has_tasks = false;
      for (const std::vector<Segment>& share : shares) {
        const Segment& segment = share.at(i);
        const int size = segment.part_threads;
        const double factor = two_nodes && 2 * size > threads ? kRemote : 1;
        const double rows = std::ceil(static_cast<double>(c.B) / segment.row_parts);
        const double exchange = machine.load + machine.byte * rows * row_bytes * (size - 1) / size;
        const double wait = barrier(machine, size, factor > 1) + exchange * factor;
        const double all = segment.work + segment.waits * wait;
        slowest = std::max(slowest, all);
        sum += all;
        has_tasks |= segment.has_tasks;
      }
      time += has_tasks ? sum / static_cast<double>(shares.size()) : slowest;
      if (i + 1 < shares[0].size()) time += barrier(machine, threads, two_nodes);
    }
    if (threads > 1) time += machine.wake + cpu::kWakeThreadTime * 1e-9 * (threads - 2);
  }
  return result;
}

// Adds the seconds of a call, or of many if they are short; of a long one the mean processor time
// of its threads, which spin while they wait for each other.
void measure(Calls& calls, const char* name, int threads, const Machine& machine,
             std::vector<double>& found) {
  calls.make_room(threads);
  const auto call = [&] { calls.run(name, threads); };
  const auto used = [&] {
    return (now(machine.clocks[0]) + (threads > 1 ? now(machine.clocks[1]) : 0)) / threads;
  };
  const double start = used();
  call();
  const double once = used() - start;
  if (once > kLongCall) return found.push_back(once);
  for (int i = 0; i < 2 + static_cast<int>(0.003 / once); ++i) found.push_back(time(1, call));
}

// The threads that cost.h chooses of so many.
int chosen(Calls& calls, const char* call, int threads) {
  cpu::forced_plan = cpu::ForcedPlan::none;
  calls.make_room(threads);
  cpu::simulation.at_barrier = at_barrier, cpu::simulation.thread = threads;  // none of them
  calls.run(call, threads);
  cpu::simulation.at_barrier = nullptr;
  cpu::forced_plan = cpu::ForcedPlan::all_threads;
  return cpu::simulation.threads;
}

void run(const std::vector<std::string>& shapes) {
  const Machine machine = measure_machine();
  std::printf("%s; two threads: exchange %.0f ns, load %.0f ns, %.3f ns a byte, waking %.1f us\n\n",
              cpu::kernels("auto").isa, machine.exchange * 1e9, machine.load * 1e9,
              machine.byte * 1e9, machine.wake * 1e6);
  std::printf("| threads | barrier, ns | on two nodes | a doubling |\n|---:|---:|---:|---:|\n");
  for (const int threads : kThreads) {
    const double time = barrier(machine, threads, false) * 1e9;
    std::printf("| %d | %.0f | %.0f | %.0f |\n", threads, time,
                barrier(machine, threads, true) * 1e9, time / std::max(std::log2(threads), 1.0));
  }
  std::printf(
      "\n| T, B, I, H | pass | 1 thread: measured ms | computed / measured | 2 threads: measured "
      "ms | computed / measured |\n|---|---|---:|---:|---:|---:|\n");
  std::string rows;
  int within = 0, all = 0;
  for (const std::string& shape : shapes) {
    const Case c = case_of(shape.c_str());
    Calls calls(c);
    recorder.weights.assign(4 * c.H * c.H * sizeof(float) / sizeof(int64_t), 1);
    for (const char* pass : kPasses) {
      cpu::forced_plan = cpu::ForcedPlan::all_threads;
      std::vector<double> found[2], computed[2];
      const double start = now(CLOCK_MONOTONIC);
      for (int round = 0; round < kMostRounds; ++round) {
        if (round >= kFewestRounds && now(CLOCK_MONOTONIC) - start > kSeconds) break;
        for (const int i : {0, 1}) {
          measure(calls, pass, i + 1, machine, found[i]);
          computed[i].push_back(compute(c, calls, pass, i + 1, machine).time);
        }
      }
      std::printf("| %s | %s |", shape.c_str(), pass);
      for (const int i : {0, 1}) {
        const double ratio = fast(computed[i]) / fast(found[i]);
        std::printf(" %.3f | %.2f |", fast(found[i]) * 1e3, ratio);
        ++all, within += std::abs(ratio - 1) <= 0.15;
      }
      std::printf("\n"), std::fflush(stdout);
      rows += "| " + shape + " | " + pass + " |";
      char cell[60];
      Computed last;
      for (const int threads : kThreads) {
        last = compute(c, calls, pass, threads, machine);
        rows.append(cell, std::snprintf(cell, sizeof(cell), " %.3f |", last.time * 1e3));
      }
      rows.append(cell, std::snprintf(cell, sizeof(cell), " %.3f | %d |\n", last.on_two_nodes * 1e3,
                                      chosen(calls, pass, kMost)));
    }
  }
  std::printf("\n%d of %d within 15%%\n\n| T, B, I, H | pass |", within, all);
  for (const int threads : kThreads) std::printf(" %d |", threads);
  std::printf(" %d, two nodes | chosen |\n|---|---|", kMost);
  for (size_t i = 0; i < std::size(kThreads) + 2; ++i) std::printf("---:|");
  std::printf("\n%s", rows.c_str());
}

}  // namespace
}  // namespace fastlstm

int main(int count, char** arguments) {
  std::vector<std::string> shapes(arguments + 1, arguments + count);
  for (const char* rows : {"1", "8", "32"}) {
    for (int units = 32; count == 1 && units <= 1024; units *= 2) {
      const std::string size = std::to_string(units);
      shapes.push_back(std::string("50,") + rows + "," + size + "," + size);
    }
  }
  fastlstm::run(shapes);
}

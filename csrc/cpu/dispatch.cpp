// Chooses the instruction set at run time, so that one wheel serves every machine.
#include <pthread.h>

#include <stdexcept>

#if defined(FASTLSTM_recurrence_amx)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "kernels.h"

namespace fastlstm::cpu {
namespace {

// The stepping object has no use for bfloat16's instructions and tiles: `stream` is the instruction
// set that it is compiled for. A program that has nothing else is built without the recurrence.
#if defined(FASTLSTM_RECURRENCE)
#define FASTLSTM_KERNELS(isa, stream)                                                            \
  Kernels {                                                                                      \
    #isa, isa::forward_streams, isa::forward_prepacked, isa::forward_workspace, isa::forward,    \
        isa::backward_workspace, isa::backward, isa::layer_norm_forward_workspace,               \
        isa::layer_norm_forward, isa::layer_norm_backward_workspace, isa::layer_norm_backward,   \
        isa::checksum, isa::to_bfloat16, isa::bernoulli_loss, isa::draw_mask, isa::drop_weights, \
        isa::drop_again, isa::fma_flops, stream::stream_lanes, stream::stream_has_vnni,          \
        stream::stream_run                                                                       \
  }
#else
#define FASTLSTM_KERNELS(isa, stream)                                                      \
  Kernels {                                                                                \
    #isa, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, \
        nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr,            \
        stream::stream_lanes, stream::stream_has_vnni, stream::stream_run                  \
  }
#endif

// Which of them are compiled: csrc/cpu/kernels.cmake may leave some out.
#if !defined(FASTLSTM_RECURRENCE)
#define FASTLSTM_recurrence_portable
#define FASTLSTM_recurrence_avx2
#define FASTLSTM_recurrence_avx512
#define FASTLSTM_recurrence_avx512bf16
#endif

#if defined(FASTLSTM_recurrence_amx)
// Whether the processor has tiles and their products of bfloat16, which __builtin_cpu_supports of
// older compilers does not know.
bool has_tiles() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & 1u << 22) && (d & 1u << 24);
}

// Asks Linux for permission to use tiles, which are 8 KiB of state for each thread: see
// Documentation/arch/x86/xstate.rst. It refuses if a thread's signal stack is too small for them.
bool are_tiles_granted() {
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}
#endif

const std::vector<Kernels>& available() {
  static const std::vector<Kernels> best_first = [] {
    std::vector<Kernels> list;
#if defined(FASTLSTM_stream_avx512)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
#if defined(FASTLSTM_recurrence_avx512bf16)
      if (__builtin_cpu_supports("avx512bf16")) {
#if defined(FASTLSTM_recurrence_amx)
        if (has_tiles() && are_tiles_granted()) {
          list.push_back(FASTLSTM_KERNELS(amx, avx512));
        }
#endif
        list.push_back(FASTLSTM_KERNELS(avx512bf16, avx512));
      }
#endif
#if defined(FASTLSTM_recurrence_avx512)
      list.push_back(FASTLSTM_KERNELS(avx512, avx512));
#endif
    }
#endif
#if defined(FASTLSTM_stream_avx2) && defined(FASTLSTM_recurrence_avx2)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
      list.push_back(FASTLSTM_KERNELS(avx2, avx2));
    }
#endif
#if defined(FASTLSTM_stream_portable) && defined(FASTLSTM_recurrence_portable)
    list.push_back(FASTLSTM_KERNELS(portable, portable));
#endif
    return list;
  }();
  return best_first;
}

const int watches_forks = pthread_atfork(nullptr, nullptr, [] { is_forked = true; });

}  // namespace

bool is_forked = false;
#if defined(FASTLSTM_FORCE_PLAN)
ForcedPlan forced_plan = ForcedPlan::none;
Simulation simulation;
#endif

const Kernels& kernels(std::string_view isa) {
  if (available().empty()) {
    throw std::runtime_error(
        "the kernels were compiled with FASTLSTM_ISAS=native for a CPU with other instruction "
        "sets: compile them again on this machine");
  }
  if (isa == "auto") return available().front();
  for (const Kernels& candidate : available()) {
    if (isa == candidate.isa) return candidate;
  }
  std::string message = "isa: expected auto";
  for (const std::string& name : isas()) message += ", " + name;
  throw std::invalid_argument(message + " on this machine, got " + std::string(isa));
}

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const Kernels& candidate : available()) names.emplace_back(candidate.isa);
  return names;
}

}  // namespace fastlstm::cpu

# How the kernels are compiled; included by the Python module and by the tests of tests/native.

if(NOT CMAKE_CXX_COMPILER_ID MATCHES "^(GNU|Clang)$")
  message(FATAL_ERROR "fastlstm is built by g++ or clang++, whose vector extensions it uses; "
                      "found ${CMAKE_CXX_COMPILER_ID}. Set CXX=g++.")
endif()

set(CMAKE_CXX_STANDARD 17)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()
if(CMAKE_CXX_FLAGS MATCHES "-fsanitize")
  set(CMAKE_CXX_FLAGS_RELEASE "-O1") # at -O3 the sanitizers keep g++ busy for more than 20 minutes
else()
  set(CMAKE_CXX_FLAGS_RELEASE "-O3")
endif()

include(CheckCXXCompilerFlag)
# The runtime of OpenMP: the module finds it in its process. Without one, every call starts threads.
find_package(Threads REQUIRED)
add_library(fastlstm_threads INTERFACE)
target_link_libraries(fastlstm_threads INTERFACE Threads::Threads)
if(FASTLSTM_OPENMP_OF_PROCESS)
  target_compile_definitions(fastlstm_threads INTERFACE FASTLSTM_OPENMP)
else()
  find_package(OpenMP COMPONENTS CXX)
  if(OpenMP_CXX_FOUND)
    target_compile_definitions(fastlstm_threads INTERFACE FASTLSTM_OPENMP)
    target_link_libraries(fastlstm_threads INTERFACE OpenMP::OpenMP_CXX)
  endif()
endif()

set(FASTLSTM_ISAS "" CACHE STRING
    "native: only the instruction sets that this machine runs; empty: all, and portable code")
set(FASTLSTM_CHOSEN "")
if(FASTLSTM_ISAS STREQUAL "native")
  file(READ /proc/cpuinfo cpuinfo)
  if(cpuinfo MATCHES "avx512f .*avx512vl") # the kernel lists flags in the order of their numbers
    set(FASTLSTM_CHOSEN stream_avx512 recurrence_avx512)
    if(cpuinfo MATCHES "avx512_bf16")
      set(FASTLSTM_CHOSEN stream_avx512 recurrence_avx512bf16)
    endif()
    if(cpuinfo MATCHES "amx_bf16 .*amx_tile")
      list(APPEND FASTLSTM_CHOSEN recurrence_amx)
    endif()
  elseif(cpuinfo MATCHES " fma .*avx2")
    set(FASTLSTM_CHOSEN stream_avx2 recurrence_avx2)
  else()
    set(FASTLSTM_CHOSEN stream_portable recurrence_portable)
  endif()
elseif(FASTLSTM_ISAS)
  message(FATAL_ERROR "FASTLSTM_ISAS: expected native or nothing, got ${FASTLSTM_ISAS}")
endif()

# Adds to `target` what is compiled for one instruction set, with the flags that follow: the
# recurrence or the stepping object. dispatch.cpp chooses at run time.
# Contraction makes a * b + c one fused instruction: it is off by default in strict C++.
set(FASTLSTM_recurrence_SOURCES forward.cpp backward.cpp normalized.cpp checksum.cpp
                                rounding.cpp bernoulli_loss.cpp masks.cpp peak.cpp)
set(FASTLSTM_stream_SOURCES stream.cpp)
# One compilation for both: the backward pass recomputes steps with all of the forward's code, of
# which a compilation of its own takes 24 s, and 430 KB, for each instruction set.
set(both ${CMAKE_CURRENT_LIST_DIR}/forward.cpp ${CMAKE_CURRENT_LIST_DIR}/backward.cpp)
set_source_files_properties(${both} PROPERTIES UNITY_GROUP recurrence)
function(add_isa target what isa)
  if(FASTLSTM_ISAS AND NOT ${what}_${isa} IN_LIST FASTLSTM_CHOSEN)
    return()
  endif()
  target_compile_definitions(${target} PRIVATE FASTLSTM_${what}_${isa})
  if(NOT TARGET ${what}_${isa})
    set(sources ${FASTLSTM_${what}_SOURCES})
    list(TRANSFORM sources PREPEND ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/)
    add_library(${what}_${isa} OBJECT ${sources})
    target_compile_definitions(${what}_${isa} PRIVATE FASTLSTM_ISA=${isa})
    target_compile_options(${what}_${isa} PRIVATE -ffp-contract=fast -fno-math-errno ${ARGN})
    target_link_libraries(${what}_${isa} PRIVATE fastlstm_threads)
    set_target_properties(${what}_${isa} PROPERTIES UNITY_BUILD ON UNITY_BUILD_MODE GROUP)
  endif()
  target_link_libraries(${target} PRIVATE ${what}_${isa})
endfunction()

set(FASTLSTM_AVX512_FLAGS -mavx512f -mavx512dq -mavx512bw -mavx512vl -mfma
                          -mprefer-vector-width=512)

# Adds the stepping object of csrc/stream.h, and the choice among the instruction sets, to `target`.
function(add_stream target)
  set(here ${CMAKE_CURRENT_FUNCTION_LIST_DIR})
  target_sources(${target} PRIVATE ${here}/dispatch.cpp ${here}/stream_object.cpp)
  add_isa(${target} stream portable)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
    add_isa(${target} stream avx2 -mavx2 -mfma)
    add_isa(${target} stream avx512 ${FASTLSTM_AVX512_FLAGS})
  endif()
  target_link_libraries(${target} PRIVATE fastlstm_threads)
endfunction()

# Adds the kernels of every instruction set, the stepping object too, to `target`.
function(add_kernels target)
  add_stream(${target})
  target_compile_definitions(${target} PRIVATE FASTLSTM_RECURRENCE)
  add_isa(${target} recurrence portable)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
    set(avx512 ${FASTLSTM_AVX512_FLAGS})
    add_isa(${target} recurrence avx2 -mavx2 -mfma)
    add_isa(${target} recurrence avx512 ${avx512})
    add_isa(${target} recurrence avx512bf16 ${avx512} -mavx512bf16)
    # Only Linux is asked for tiles; g++ knows them from version 11 on.
    check_cxx_compiler_flag("-mamx-tile -mamx-bf16" FASTLSTM_HAS_AMX)
    if(FASTLSTM_HAS_AMX AND CMAKE_SYSTEM_NAME STREQUAL "Linux")
      add_isa(${target} recurrence amx ${avx512} -mavx512bf16 -mamx-tile -mamx-bf16)
    endif()
  endif()
endfunction()

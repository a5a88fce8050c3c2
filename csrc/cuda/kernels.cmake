# How the CUDA kernels are compiled, where there is an nvcc that can; included by the Python module.
#
# They are optional: whatever is wrong with nvcc is said, and the module is built without them.
# Afterwards FASTLSTM_NO_CUDA is empty, or why they are left out, which the module then tells users.

set(FASTLSTM_CUDA_ARCHITECTURES "" CACHE STRING
    "GPUs to compile for, in the notation of CMake's CUDA_ARCHITECTURES; OFF for no CUDA kernels")
set(FASTLSTM_NO_CUDA "")

if(FASTLSTM_CUDA_ARCHITECTURES MATCHES "^(OFF|off|0)$")
  set(FASTLSTM_NO_CUDA "they were switched off when it was built")
elseif(FASTLSTM_CUDA_ARCHITECTURES STREQUAL "NO_GPU")  # from setup.py
  set(FASTLSTM_NO_CUDA "no GPU was found when it was built, and FASTLSTM_CUDA_ARCHITECTURES not set")
else()
  find_program(nvcc nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin
               NO_CACHE)
  if(nvcc AND NOT DEFINED ENV{CUDACXX})
    set(ENV{CUDACXX} ${nvcc})
  endif()
  include(CheckLanguage)
  check_language(CUDA)  # in a project of its own, so that a failure is not ours
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    find_package(CUDAToolkit)
  elseif(DEFINED ENV{CUDACXX})
    set(FASTLSTM_NO_CUDA "$ENV{CUDACXX} failed to compile a test program when it was built")
  else()
    set(FASTLSTM_NO_CUDA "nvcc was not found when it was built")
  endif()
endif()

if(NOT FASTLSTM_NO_CUDA)
  set(version ${CMAKE_CUDA_COMPILER_VERSION})
  if(NOT CMAKE_CUDA_COMPILER_ID STREQUAL "NVIDIA" OR version VERSION_LESS 11.8)
    set(FASTLSTM_NO_CUDA "it was built with ${CMAKE_CUDA_COMPILER_ID} ${version}, not nvcc 11.8+")
  elseif(NOT TARGET CUDA::cudart_static)
    set(FASTLSTM_NO_CUDA "the static CUDA runtime was not found when it was built")
  endif()
endif()

if(NOT FASTLSTM_NO_CUDA)
  if(FASTLSTM_CUDA_ARCHITECTURES)
    set(architectures ${FASTLSTM_CUDA_ARCHITECTURES})
  elseif(version VERSION_LESS 12.8)  # the first that knows 100
    set(architectures 80-real 90)
  else()  # machine code for each, and PTX of the last for GPUs to come
    set(architectures 80-real 90-real 100)
  endif()
  set(CMAKE_CUDA_STANDARD 17)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
  set(CMAKE_CUDA_FLAGS_RELEASE "-O3")
  set(CMAKE_CUDA_ARCHITECTURES ${architectures})
  include(CheckSourceCompiles)
  unset(FASTLSTM_NVCC_WORKS CACHE)
  check_source_compiles(CUDA "
#include <cuda_bf16.h>
#include <pthread.h>
__global__ void kernel(__nv_bfloat16* p) { *p = __float2bfloat16(1.0f); }
int main() { return 0; }" FASTLSTM_NVCC_WORKS)
  if(NOT FASTLSTM_NVCC_WORKS)
    set(FASTLSTM_NO_CUDA "nvcc ${version} failed on C++17 for ${architectures} when it was built")
  endif()
endif()

# Adds the kernels to `target`, or tells it why they are missing.
function(add_cuda_kernels target)
  if(FASTLSTM_NO_CUDA)
    message(STATUS "fastlstm has no CUDA kernels: ${FASTLSTM_NO_CUDA}")
    target_compile_definitions(${target} PRIVATE "FASTLSTM_NO_CUDA=\"${FASTLSTM_NO_CUDA}\"")
    return()
  endif()
  set(here ${CMAKE_CURRENT_FUNCTION_LIST_DIR})
  add_library(cuda_kernels OBJECT ${here}/plan.cpp ${here}/launch.cu ${here}/cell.cu
              ${here}/normalized_cell.cu)
  foreach(type bfloat16 float16 tf32 tf32x3)  # a file each, to be compiled side by side
    target_sources(cuda_kernels PRIVATE ${here}/forward_${type}.cu ${here}/backward_${type}.cu)
  endforeach()
  target_include_directories(cuda_kernels PRIVATE ${here}/..)
  target_link_libraries(cuda_kernels PRIVATE CUDA::cudart_static)
  string(REGEX MATCHALL "[0-9]+" numbers "${architectures}")
  list(JOIN numbers "," numbers)
  set(ptx ${architectures})
  list(FILTER ptx EXCLUDE REGEX "-real$")
  string(REGEX MATCHALL "[0-9]+" ptx "${ptx}")
  list(JOIN ptx "," ptx)
  message(STATUS "fastlstm has CUDA kernels for ${numbers}, by nvcc ${version}")
  target_sources(${target} PRIVATE ${here}/bindings.cpp)
  target_compile_definitions(${target} PRIVATE "FASTLSTM_CUDA=${numbers}" "FASTLSTM_CUDA_PTX=${ptx}")
  target_link_libraries(${target} PRIVATE cuda_kernels CUDA::cudart_static)
  set_target_properties(${target} PROPERTIES LINKER_LANGUAGE CXX)
endfunction()

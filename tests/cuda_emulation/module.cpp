// The module cuda_emulation: the functions of fastlstm._C.cuda, run by the emulation.
#include "controls.h"
#include "cuda/bindings.h"

PYBIND11_MODULE(cuda_emulation, module) {
  fastlstm::emulation::bind_controls(module);
  fastlstm::bind_cuda(module);
}

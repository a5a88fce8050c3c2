// What must see a call besides autograd: fastlstm/tracing.py asks the same in Python.
#pragma once

namespace fastlstm::direct {

// Whether a tracer, a dispatch mode or a function mode, a transform of torch.func or forward-mode
// differentiation is active. Compilers are not asked for: they do not enter compiled code. In doubt
// the answer is yes.
bool is_watched();
bool is_autocast_enabled();

// torch.is_grad_enabled() and torch.get_num_threads().
bool is_grad_enabled();
int num_threads();

}  // namespace fastlstm::direct

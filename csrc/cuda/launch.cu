// The launchers of the resident recurrence, and the properties of a device.
#include "cuda/launch.h"
#include "cuda/recurrence.h"

namespace fastlstm::cuda {
namespace {

bool is_plain(Direction direction, const RecurrenceCall& call, const Plan& plan) {
  const int pass_rows = 8 * variant(direction, plan.kernel).n_tiles;
  return !call.shape.lengths && !call.shape.reset && !call.layered && plan.stages > 0 &&
         plan.units * pass_rows <= kThreads * kPlainThreadRows;
}

// The function that finds a kernel for a type of products.
template <class Find>
auto kernel_for(DType dtype, Products products, const Find (&find)[4]) {
  switch (dtype) {
    case DType::bfloat16:
      return find[0];
    case DType::float16:
      return find[1];
    case DType::float32:
      return products == Products::tf32 ? find[2] : find[3];
    case DType::float64:
      break;
  }
  throw std::invalid_argument("dtype: float64 has no resident kernel");
}

ForwardKernel kernel_of(const RecurrenceForward& call, Products products, const Plan& plan) {
  using Find = ForwardKernel (*)(int, bool);
  constexpr Find find[] = {forward_bfloat16, forward_float16, forward_tf32, forward_tf32x3};
  const bool plain = is_plain(Direction::forward, call, plan);
  return kernel_for(call.shape.dtype, products, find)(plan.kernel, plain);
}

BackwardKernel kernel_of(const RecurrenceBackward& call, Products products, const Plan& plan) {
  using Find = BackwardKernel (*)(int, bool);
  constexpr Find find[] = {backward_bfloat16, backward_float16, backward_tf32, backward_tf32x3};
  const bool plain = is_plain(Direction::backward, call, plan);
  return kernel_for(call.shape.dtype, products, find)(plan.kernel, plain);
}

ForwardOptionsKernel kernel_of(const RecurrenceForwardWithOptions& call, Products products,
                               const Plan& plan) {
  using Find = ForwardOptionsKernel (*)(int);
  constexpr Find find[] = {forward_bfloat16, forward_float16, forward_tf32, forward_tf32x3};
  return kernel_for(call.shape.dtype, products, find)(plan.kernel);
}

BackwardOptionsKernel kernel_of(const RecurrenceBackwardWithOptions& call, Products products,
                                const Plan& plan) {
  using Find = BackwardOptionsKernel (*)(int);
  constexpr Find find[] = {backward_bfloat16, backward_float16, backward_tf32, backward_tf32x3};
  return kernel_for(call.shape.dtype, products, find)(plan.kernel);
}

template <class Call>
void run(Direction direction, const Call& call, Products products, const Plan& plan,
         Stream stream) {
  const Shape& shape = call.shape;
  if (shape.G == 0 || shape.B == 0 || shape.H == 0) return;
  if (shape.T > kMostSteps) {
    throw std::invalid_argument("T: expected at most " + std::to_string(kMostSteps) +
                                " steps, got " + std::to_string(shape.T));
  }
  const Problem problem = {direction, shape.dtype,  shape.B, shape.G,
                           shape.H,   call.layered, products};
  check_plan(problem, plan);
  const DeviceGuard guard(stream.device);
  PassArguments<Call> arguments{call, lay_out(problem, plan)};
  Recurrence& r = arguments.recurrence;
  r.between_rows = call.layered ? 1 : shape.G;
  r.between_groups = call.layered ? shape.T * shape.B : 1;
  r.reverse.set(shape);
  const bool alone = plan.stages == 0;  // no block waits for another
  if (!alone) {
    // Counters start at 0, and so do the numbers that pad rows of the operand.
    const auto cuda_stream = static_cast<cudaStream_t>(stream.stream);
    check(cudaMemsetAsync(call.workspace, 0, plan.workspace_bytes, cuda_stream), "cudaMemsetAsync");
    r.counters = static_cast<unsigned*>(call.workspace);
    r.operands = static_cast<unsigned char*>(call.workspace) + counter_bytes(shape.G, plan.tiles);
  }
  launch(kernel_of(call, products, plan),
         {stream.device, shape.G * plan.tiles * plan.slices, kThreads, plan.shared_bytes, !alone,
          stream.stream},
         arguments);
}

}  // namespace

void forward(const RecurrenceForward& call, Products products, const Plan& plan, Stream stream) {
  run(Direction::forward, call, products, plan, stream);
}

void backward(const RecurrenceBackward& call, Products products, const Plan& plan, Stream stream) {
  run(Direction::backward, call, products, plan, stream);
}

void forward_with_options(const RecurrenceForwardWithOptions& call, Products products,
                          const Plan& plan, Stream stream) {
  run(Direction::forward, call, products, plan, stream);
}

void backward_with_options(const RecurrenceBackwardWithOptions& call, Products products,
                           const Plan& plan, Stream stream) {
  run(Direction::backward, call, products, plan, stream);
}

Device device(int number) {
  const auto attribute = [number](cudaDeviceAttr which) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, which, number), "cudaDeviceGetAttribute");
    return value;
  };
  return {attribute(cudaDevAttrComputeCapabilityMajor),
          attribute(cudaDevAttrComputeCapabilityMinor), attribute(cudaDevAttrMultiProcessorCount),
          static_cast<size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin))};
}

}  // namespace fastlstm::cuda

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

ForwardKernel kernel_of(const RecurrenceForward& call, Products products, const Plan& plan) {
  const bool plain = is_plain(Direction::forward, call, plan);
  switch (call.shape.dtype) {
    case DType::bfloat16:
      return forward_bfloat16(plan.kernel, plain);
    case DType::float16:
      return forward_float16(plan.kernel, plain);
    case DType::float32:
      return products == Products::tf32 ? forward_tf32(plan.kernel, plain)
                                        : forward_tf32x3(plan.kernel, plain);
    case DType::float64:
      break;
  }
  throw std::invalid_argument("dtype: float64 has no resident kernel");
}

BackwardKernel kernel_of(const RecurrenceBackward& call, Products products, const Plan& plan) {
  const bool plain = is_plain(Direction::backward, call, plan);
  switch (call.shape.dtype) {
    case DType::bfloat16:
      return backward_bfloat16(plan.kernel, plain);
    case DType::float16:
      return backward_float16(plan.kernel, plain);
    case DType::float32:
      return products == Products::tf32 ? backward_tf32(plan.kernel, plain)
                                        : backward_tf32x3(plan.kernel, plain);
    case DType::float64:
      break;
  }
  throw std::invalid_argument("dtype: float64 has no resident kernel");
}

template <class Arguments, class Call>
void run(Direction direction, const Call& call, Products products, const Plan& plan,
         Stream stream) {
  const Shape& shape = call.shape;
  if (shape.G == 0 || shape.B == 0 || shape.H == 0) return;
  const Problem problem = {direction, shape.dtype,  shape.B, shape.G,
                           shape.H,   call.layered, products};
  check_plan(problem, plan);
  const DeviceGuard guard(stream.device);
  Arguments arguments{call, lay_out(problem, plan)};
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
  run<ForwardArguments>(Direction::forward, call, products, plan, stream);
}

void backward(const RecurrenceBackward& call, Products products, const Plan& plan, Stream stream) {
  run<BackwardArguments>(Direction::backward, call, products, plan, stream);
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

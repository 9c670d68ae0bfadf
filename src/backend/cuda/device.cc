#include "backend/cuda/device.h"

#include "base/error.h"

namespace nibble::cuda {
namespace {

constexpr int kOldestArch = 80;

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

int driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

std::string reason_of(cudaError_t error) {
  const int driver = driver_version();
  if (driver == 0) return "no CUDA driver is installed on this machine";
  if (error == cudaErrorInsufficientDriver) {
    return "the driver supports CUDA " + version_text(driver) + ", this build needs CUDA " +
           version_text(CUDART_VERSION) + "; update the driver";
  }
  if (error == cudaErrorNoDevice) return "the driver shows no CUDA device";
  return cudaGetErrorString(error);
}

int count_devices(std::string* reason) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess && count > 0) return count;
  *reason = reason_of(error == cudaSuccess ? cudaErrorNoDevice : error);
  return 0;
}

int arch_of(int index) {
  int major = 0, minor = 0;
  CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index));
  CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index));
  return major * 10 + minor;
}

std::string arch_text(int arch) {
  return std::to_string(arch / 10) + "." + std::to_string(arch % 10);
}

}  // namespace

void call_failed(cudaError_t error, const char* call, const char* file, int line) {
  const std::string where = std::string(file) + ":" + std::to_string(line);
  throw Error(std::string("the CUDA device failed: ") + cudaGetErrorString(error) + " in " + call +
              " at " + where);
}

std::optional<int> first_usable_device(std::string* reason) {
  if (driver_version() == 0) return std::nullopt;
  std::string why;
  const int count = count_devices(&why);
  for (int index = 0; index < count; ++index) {
    if (arch_of(index) >= kOldestArch) return index;
    why = "its GPUs have compute capability " + arch_text(arch_of(index)) + " and 8.0 is needed";
  }
  if (reason != nullptr) *reason = why;
  return std::nullopt;
}

void Device::make_current() const {
  thread_local int current = 0;  // as the runtime has it for a new thread
  if (current == index) return;
  CUDA_CHECK(cudaSetDevice(index));
  current = index;
}

Device open_device(int index) {
  const std::string flag = "--device cuda:" + std::to_string(index);
  std::string reason;
  const int count = count_devices(&reason);
  if (count == 0) throw Error(flag + ": " + reason);
  if (index < 0 || index >= count) {
    throw Error(flag + ": there " +
                (count == 1 ? std::string("is 1 device, cuda:0")
                            : "are " + std::to_string(count) +
                                  " devices, cuda:0 to cuda:" + std::to_string(count - 1)));
  }
  cudaDeviceProp properties;
  CUDA_CHECK(cudaGetDeviceProperties(&properties, index));
  Device device{.index = index,
                .name = properties.name,
                .arch = properties.major * 10 + properties.minor,
                .num_processors = properties.multiProcessorCount,
                .memory_bytes = properties.totalGlobalMem,
                .shared_bytes = properties.sharedMemPerBlockOptin,
                .cache_bytes = size_t(properties.l2CacheSize)};
  if (device.arch < kOldestArch) {
    throw Error(flag + ": " + device.name + " has compute capability " + arch_text(device.arch) +
                "; 8.0 (Ampere) or newer is needed, or --device cpu");
  }
  device.make_current();
  // Kernels have no stack but for a few spilled registers, which the driver counts by itself. By
  // default it keeps 1 KiB for every thread there may be.
  CUDA_CHECK(cudaDeviceSetLimit(cudaLimitStackSize, 0));
  return device;
}

}  // namespace nibble::cuda

#pragma once

#include <string>
#include <vector>

namespace mmfl {

struct CudaDevice {
  std::string name;
  int major;
  int minor;
};

struct CudaReport {
  int runtime_version;  // 13000 for 13.0
  int driver_version;   // 0 without a driver
  std::string error;    // empty when the devices could be listed
  std::vector<CudaDevice> devices;
};

// What the CUDA runtime sees; works, and says why, on a machine without a driver.
CudaReport cuda_report();

}  // namespace mmfl

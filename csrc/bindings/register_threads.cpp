#include <exception>
#include <mutex>

#include "bindings/registration.h"
#include "common/thread_pool.h"

namespace py = pybind11;

namespace mmfl {

void register_threads(py::module_& m) {
  m.def(
      "on_threads",
      [](const py::function& function, int threads) {
        std::mutex mutex;
        std::exception_ptr problem;
        {
          py::gil_scoped_release release;
          parallel_for(threads, threads, [&](std::int64_t) {
            py::gil_scoped_acquire acquire;
            try {
              function();
            } catch (...) {
              const std::lock_guard<std::mutex> lock(mutex);
              if (!problem) problem = std::current_exception();
            }
          });
        }
        if (problem) std::rethrow_exception(problem);
      },
      py::arg("function"), py::arg("threads"));
}

}  // namespace mmfl

// Opening the CUDA library, which shares nothing with this module but csrc/cuda/api.h.
#pragma once

#include <string>

#include "cuda/api.h"

namespace pyguide::bindings {

// Makes the library at `path` the one that cuda_library() returns; throws std::runtime_error if it
// does not load or belongs to another version of pyguide. A library stays loaded for good.
void open_cuda_library(const std::string& path);

// Throws std::runtime_error if no library was opened.
const cuda::Api& cuda_library();

}  // namespace pyguide::bindings

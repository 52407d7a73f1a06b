#pragma once

#include "cpu/kernels.h"

extern const pyguide::cpu::KernelSet kWideKernels;
